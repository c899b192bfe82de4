"""What is asked for: prompt files, and the images to make from them."""
