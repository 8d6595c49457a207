"""Where arrays lie: the mesh, batches split over it, and what several processes decide together."""

from bilevel.layout.layout import AXIS as AXIS
from bilevel.layout.layout import Layout as Layout
from bilevel.layout.layout import data_layout as data_layout
