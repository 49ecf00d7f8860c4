"""Whether and how a challenger becomes champion: the gate, the promotion, and the way back."""
