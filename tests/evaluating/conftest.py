"""Jets, answers and metrics that the tests of physics, reporting and evaluating share."""

from tests.physics.jets import (  # noqa: F401 (fixtures)
    good_metrics,
    good_output,
    jets,
    widths,
)
from tests.reporting.documents import documents  # noqa: F401 (fixture)
