"use strict";
// The language of a page, and what changes on a live one. Texts of models and rows are never markup:
// the parts of a live page come from templates that escape them.

const KEPT = "offbook.language";
const root = document.documentElement;

function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

function firstLanguage() {
  const wanted = kept() ?? navigator.language?.slice(0, 2);
  return ["en", "zh"].includes(wanted) ? wanted : root.dataset.language;
}

let language = firstLanguage();

function speak() {
  root.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-en]")) {
    element.textContent = element.dataset[language];
  }
  for (const element of document.querySelectorAll("[data-label-en]")) {
    element.setAttribute("aria-label", element.dataset[language === "zh" ? "labelZh" : "labelEn"]);
  }
}

document.getElementById("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(KEPT, language);
  } catch {
    // It is not kept, then.
  }
  speak();
});
speak();

// A live page.

let version = document.body.dataset.live;
const policy = version && window.trustedTypes?.createPolicy("offbook", { createHTML: (text) => text });

function replace(id, html) {
  const part = document.getElementById(id);
  if (!part) return;
  const open = [...part.querySelectorAll("details[open]")].map((one) => one.id);
  part.innerHTML = policy ? policy.createHTML(html) : html;
  part.hidden = !html.trim();
  for (const name of open) document.getElementById(name)?.setAttribute("open", "");
}

async function follow() {
  let isLost = false;
  try {
    const answer = await fetch(`/state?since=${encodeURIComponent(version)}`);
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    const parts = Object.entries(state.parts);
    for (const [id, html] of parts) replace(id, html);
    if (parts.length) speak();
    version = state.version;
  } catch {
    isLost = true;
  }
  document.getElementById("lost").hidden = !isLost;
  setTimeout(follow, 1000);
}

if (version) follow();
