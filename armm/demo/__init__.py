"""`armm demo`: small models of text, images and audio in minutes, and one page about them."""
