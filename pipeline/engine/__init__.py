"""What moves images through the stages. The only place with threads and queues, and the only one that turns
an item's error into a Failure."""
