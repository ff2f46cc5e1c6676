"""Search a folder of pictures by words, example pictures, or both.

index = PhotoIndex(detector, "my/photos")
index.update()                                   # once, and when pictures have changed
hits = search(index, text="dog")                 # as often as wanted
"""

from trex2_mini.search.index import PhotoIndex
from trex2_mini.search.page import contact_sheet
from trex2_mini.search.rank import Hit, search

__all__ = ["Hit", "PhotoIndex", "contact_sheet", "search"]
