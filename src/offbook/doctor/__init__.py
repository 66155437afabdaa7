"""What a data set contains, and what is wrong in it."""
