mod hostile;
mod memory;
mod sticks;
