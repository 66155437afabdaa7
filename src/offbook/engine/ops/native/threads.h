// Threads that share work without waiting for one that is not running.
//
// With OpenMP, threads begin and end a loop together. Where another program takes a core for some
// milliseconds, the thread there is stopped in the middle of its work and the others wait for it:
// beside one such program on two cores, a step had 43% of its speed. Here a loop ends when its
// tasks are done, whoever did them, and a thread that shares its core rests between two tasks, when
// nobody waits for it, before the system stops it within one.

#pragma once

#include <linux/futex.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vectors.h"

namespace {

constexpr int64_t MOST_THREADS = 256;

inline int64_t nanoseconds(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000 + t.tv_nsec;
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A number that threads wait for.
struct Signal {
  uint32_t value, sleepers;

  uint32_t get() const { return __atomic_load_n(&value, __ATOMIC_SEQ_CST); }

  // Waits until it is not `old` any more: for some nanoseconds awake, then asleep.
  uint32_t wait(uint32_t old, int64_t awake) {
    for (int64_t end = awake ? nanoseconds() + awake : 0; awake && nanoseconds() < end;)
      for (int i = 0; i < 32; i++) {
        if (get() != old) return get();
        relax();
      }
    __atomic_fetch_add(&sleepers, 1, __ATOMIC_SEQ_CST);
    while (get() == old) syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
    __atomic_fetch_sub(&sleepers, 1, __ATOMIC_SEQ_CST);
    return get();
  }

  void advance() {
    __atomic_fetch_add(&value, 1, __ATOMIC_SEQ_CST);
    wake();
  }

  // To be called after a change.
  void wake() {
    if (__atomic_load_n(&sleepers, __ATOMIC_SEQ_CST))
      syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
  }
};

// Whether a thread shares its core with other programs, and when it rests. The system stops a
// thread that has used up its share of a core, for milliseconds. One that sleeps for a moment after
// every 0.4 milliseconds gets the same share and is not stopped: measured on Linux 6.18 beside
// one program, 48% of a core instead of 50%. On a core of its own, a thread that rests has 93%.
struct Pace {
  // In nanoseconds: it looks after WORK; if it was stopped for more than STOPPED, its core is
  // shared, and it sleeps for REST after each WORK.
  static constexpr int64_t WORK = 400000, STOPPED = 500000, REST = 30000;
  static constexpr int64_t SHORTEST = 50000000, LONGEST = 400000000;  // of its rests in all
  bool on;                  // whether this thread is at a job together with others
  int64_t since, computed;  // the time, and the processor's time, when it last began to work
  int64_t until, span;      // it rests until then, for so long

  void begin() {
    on = true;
    since = nanoseconds();
    computed = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
  }

  // Whether to rest now.
  bool due() {
    if (!on) return false;
    int64_t worked = nanoseconds() - since, before = computed;
    if (worked < WORK) return false;
    begin();
    if (worked - (computed - before) > STOPPED) {
      span = since - until < 2 * span ? smaller(2 * span, LONGEST) : SHORTEST;
      until = since + span;
    }
    return since < until;
  }

  // To be called where no thread waits for this one.
  void rest() {
    timespec moment = {0, REST};
    nanosleep(&moment, nullptr);
    begin();
  }
};

// The threads. They start when they are first needed, and wait for jobs. While a core is shared,
// the caller does not compute: it begins and ends all jobs, so all would wait if the system stopped
// it, and a thread that mostly sleeps is not stopped.
struct Pool {
  static constexpr uint32_t OPEN = 1u << 31;
  static constexpr int64_t AWAKE = 200000, LAST = 50000;  // nanoseconds
  int own;                                                // whether jobs are for these threads
  pid_t process;                                          // that has them: a child of it does not
  pthread_mutex_t caller;
  int64_t started, size;   // how many threads there are, and are to be
  Signal jobs, for_first;  // counts jobs; and those that the thread of number 0 takes part in
  Signal state;            // OPEN while threads may join, plus how many did
  void (*run)(const void* job, int64_t thread);
  const void* job;
  int64_t first, threads;  // the numbers of those that may join
  int64_t shared_until;    // until then, a core is taken to be shared

  void start(int64_t count) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
    size = count;
    for (; started < count; started++) {
      pthread_t thread;
      if (pthread_create(&thread, nullptr, serve, (void*)started)) break;
      pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  static void* serve(void* thread);
  void work(int64_t thread);
};

Pool pool = {};
__thread Pace pace;

void Pool::work(int64_t thread) {
  pace.begin();
  run(job, thread);
  pace.on = false;
  if (pace.until > __atomic_load_n(&shared_until, __ATOMIC_RELAXED))
    __atomic_store_n(&shared_until, pace.until, __ATOMIC_RELAXED);
}

// Keeps this thread on a core of its own, where there are as many threads as cores. Beside another
// program, Linux put both threads on one of two cores, since they sleep now and then.
inline void keep_to_core(int64_t thread, int64_t threads) {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) || CPU_COUNT(&cores) != threads) return;
  for (int64_t core = 0; core < CPU_SETSIZE; core++)
    if (CPU_ISSET(core, &cores) && !thread--) {
      CPU_ZERO(&cores);
      CPU_SET(core, &cores);
      sched_setaffinity(0, sizeof cores, &cores);
      return;
    }
}

void* Pool::serve(void* number) {
  int64_t thread = (int64_t)number;
  keep_to_core(thread, pool.size);
  prctl(PR_SET_TIMERSLACK, 1000);  // or a rest would take 50 microseconds more
  Signal& jobs = thread ? pool.jobs : pool.for_first;
  for (uint32_t seen = 0;;) {
    bool shared = nanoseconds() < __atomic_load_n(&pool.shared_until, __ATOMIC_RELAXED);
    seen = jobs.wait(seen, shared || !thread ? 0 : AWAKE);
    uint32_t state = pool.state.get();
    while (state & OPEN)
      if (__atomic_compare_exchange_n(&pool.state.value, &state, state + 1, false, __ATOMIC_SEQ_CST,
                                      __ATOMIC_SEQ_CST)) {
        if (thread >= pool.first && thread < pool.threads) {
          pool.work(thread);
          if (!pool.first) __atomic_and_fetch(&pool.state.value, ~OPEN, __ATOMIC_SEQ_CST);
        }
        if (!__atomic_sub_fetch(&pool.state.value, 1, __ATOMIC_SEQ_CST)) pool.state.wake();
        break;
      }
  }
}

// Calls run(thread) on the threads that are free, until a call returns, which means that none of
// the `tasks` is left. Each thread has its own number below `threads`.
template <class Run>
void on_threads(int64_t threads, int64_t tasks, const Run& run) {
#ifdef _OPENMP
  if (!pool.own) {
#pragma omp parallel num_threads(threads)
    run(omp_get_thread_num());
    return;
  }
#endif
  if (pool.process != getpid()) {
    pool = {};
    pool.own = 1;
    pool.process = getpid();
  }
  int64_t all = threads;
  threads = smaller(threads, tasks);
  // A second caller does its job alone.
  if (threads <= 1 || pthread_mutex_trylock(&pool.caller)) return run(0);
  if (pool.started < all) pool.start(all);
  bool shared = nanoseconds() < pool.shared_until && pool.started;
  pool.run = [](const void* job, int64_t thread) { (*(const Run*)job)(thread); };
  pool.job = &run;
  pool.first = !shared;
  pool.threads = threads;
  __atomic_store_n(&pool.state.value, Pool::OPEN, __ATOMIC_SEQ_CST);
  pool.jobs.advance();
  if (shared) pool.for_first.advance();
  uint32_t state = Pool::OPEN;
  if (!shared) {
    pool.work(0);
    state = __atomic_and_fetch(&pool.state.value, ~Pool::OPEN, __ATOMIC_SEQ_CST);
  }
  while (state) state = pool.state.wait(state, shared ? 0 : Pool::LAST);
  pthread_mutex_unlock(&pool.caller);
}

// Divides tasks among threads, a range for each. A thread that has finished its own range takes
// tasks of other ranges, because cores are not equally fast or equally free.
struct Shares {
  int64_t tasks, count, taken[MOST_THREADS] = {};

  Shares(int64_t tasks, int64_t threads) : tasks(tasks), count(smaller(threads, MOST_THREADS)) {}

  // Takes the next task of a range; returns whether there was one.
  bool take(int64_t share, int64_t& task) {
    task = share * tasks / count + __atomic_fetch_add(taken + share, 1, __ATOMIC_RELAXED);
    return task < (share + 1) * tasks / count;
  }

  // Calls run(task) for the tasks that a thread takes.
  template <class Run>
  void each(int64_t thread, const Run& run) {
    for (int64_t i = 0; i < count; i++)
      for (int64_t task, share = (thread + i) % count; take(share, task);) {
        run(task);
        if (pace.due()) pace.rest();
      }
  }
};

// As Shares, but the tasks of a range are done in their order, by one thread at a time: for sums.
struct Sums {
  int64_t tasks, count, done[MOST_THREADS] = {};
  int held[MOST_THREADS] = {};

  Sums(int64_t tasks, int64_t threads) : tasks(tasks), count(smaller(threads, MOST_THREADS)) {}

  int64_t length(int64_t range) const { return tasks / count + (range < tasks % count); }

  int64_t start(int64_t range) const {
    return range * (tasks / count) + smaller(range, tasks % count);
  }

  // Calls run(range, place in it) for the tasks that a thread takes.
  template <class Run>
  void each(int64_t thread, const Run& run) {
    for (bool more = true; more;) {
      more = false;
      for (int64_t i = 0; i < count; i++) {
        int64_t range = (thread + i) % count, place;
        if (__atomic_load_n(done + range, __ATOMIC_ACQUIRE) == length(range)) continue;
        more = true;
        if (__atomic_exchange_n(held + range, 1, __ATOMIC_ACQUIRE)) {
          relax();
          continue;
        }
        bool due = false;
        for (place = done[range]; place < length(range) && !due; due = pace.due())
          run(range, place++);
        __atomic_store_n(done + range, place, __ATOMIC_RELEASE);
        __atomic_store_n(held + range, 0, __ATOMIC_RELEASE);
        if (due) pace.rest();
      }
    }
  }
};

// Calls run(i) for i from 0 to `count`, in tasks of `size` of them.
template <class Run>
void in_parallel(int64_t count, int64_t size, int64_t threads, const Run& run) {
  Shares shares((count + size - 1) / size, threads);
  on_threads(threads, shares.tasks, [&](int64_t thread) {
    shares.each(thread, [&](int64_t task) {
      for (int64_t i = task * size; i < smaller(count, (task + 1) * size); i++) run(i);
    });
  });
}

// Rows of a task that goes over so many numbers of each.
inline int64_t rows_of_task(int64_t width) { return width < 16384 ? 16384 / width : 1; }

}  // namespace
