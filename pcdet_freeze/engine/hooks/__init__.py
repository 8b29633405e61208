"""What happens around an iteration: one hook class for each job, called in list order by the trainer."""
