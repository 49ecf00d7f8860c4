"""Networks: built-in ones, lists of layers, and factories of other packages."""
