"""What a challenge asks for beyond scores: submissions that its site accepts, and its ranking of several."""
