"""Files and command lines as nobody should send them: made by hypothesis, judged by time, memory and how they end."""
