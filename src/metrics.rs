//! What is counted, and guards that give back on drop.
