"""What all others rest on: words, files, settings, weights; no torch where it can be helped."""
