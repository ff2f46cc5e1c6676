"""Find in a folder what the studio is asked for now: its words, its bank, the boxes and points on its image."""

from pathlib import Path

import ipywidgets

from trex2_mini.search import Hit, PhotoIndex, contact_sheet, search


class SearchTab(ipywidgets.Accordion):
    """Closed until wanted: a folder, how many pictures, the page of what was found, and a way back to the canvas.

    studio   the PromptStudio that it belongs to
    folder, top, found, chosen   ipywidgets: the folder, how many pictures, the contact sheet, a picture that was found
    """

    def __init__(self, studio: ipywidgets.VBox):
        self.studio = studio
        self.folder = ipywidgets.Text(description="Folder", placeholder="with pictures", layout={"flex": "1 1 16em"})
        self.top = ipywidgets.BoundedIntText(10, min=1, max=100, description="Pictures", layout={"width": "11em"})
        self.found, self.chosen = ipywidgets.HTML(), ipywidgets.Dropdown(description="Found")
        find = studio._button("search", "Find", "Rank the folder's pictures", lambda: self.find())
        take = studio._button("search-open", "Open", "Open the picture in the studio", lambda: self.take())
        rows = [[self.folder, self.top, find], [self.found], [self.chosen, take]]
        super().__init__([ipywidgets.VBox([ipywidgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows])])
        self.layout.width = "100%"
        self.titles, self.selected_index = ("Find this in a folder",), None
        for name in ("folder", "top", "found", "chosen"):
            getattr(self, name).add_class(f"trex-studio-search-{name}")

    def find(self) -> list[Hit]:
        """Index what is new in the folder, and show its best pictures. Raises ValueError where nothing is asked."""
        asked = {key: own for key, own in self.studio._asked().items() if not key.startswith("negative")}
        if not asked:
            raise ValueError("nothing is asked for yet: draw a box or a point, type words, or collect a bank")
        if not self.folder.value.strip():
            raise ValueError("expected a folder with pictures to search, got none")
        if "boxes" in asked or "points" in asked:
            asked["image"] = self.studio.session.encode(self.studio.current)
        index = PhotoIndex(self.studio.detector, self.folder.value.strip())
        self.studio.say(f"indexing what is new in {index.folder} ...")
        counts = index.update(progress=False)
        hits = search(index, **asked, top=self.top.value, score_threshold=self.studio.threshold.value)
        self.found.value = contact_sheet(hits)
        self.chosen.options = [(f"{hit.score:.2f} {hit.path.name}", str(hit.path)) for hit in hits]
        self.chosen.index = 0 if hits else None
        left_out = (
            f", {len(index.unreadable)} unreadable: {', '.join(list(index.unreadable)[:3])}" if index.unreadable else ""
        )
        self.studio.say(f"{len(hits)} of {counts['pictures']} pictures ({counts['new']} newly indexed{left_out})")
        return hits

    def take(self) -> str:
        """The chosen picture in the studio; returns its name there. Raises ValueError where none is chosen."""
        if self.chosen.value is None:
            raise ValueError("no picture was found yet: press Find first")
        return self.studio.add_image(Path(self.chosen.value))
