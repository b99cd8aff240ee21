"""The jets and the records of a run that the tests of physics use."""

from tests.physics import conftest as physics_conftest

make_jets = physics_conftest.make_jets
target_of = physics_conftest.target_of
jets = physics_conftest.jets
good_output = physics_conftest.good_output
good_metrics = physics_conftest.good_metrics
widths = physics_conftest.widths
run_documents = physics_conftest.run_documents
