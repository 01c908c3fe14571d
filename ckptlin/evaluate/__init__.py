"""Is it any better?  Engines that answer, tasks, and what is made of graded answers."""
