"""Input files, and the requests made from them."""
