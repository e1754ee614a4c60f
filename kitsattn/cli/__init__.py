"""What people type: one file a command, and the console they share."""
