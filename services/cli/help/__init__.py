"""What helps to find a command and to type it: headings of commands, and completion in shells."""
