"""The records of a run, made of the jets that the tests of physics use."""

from tests.physics import conftest as physics_conftest

make_jets = physics_conftest.make_jets
jets = physics_conftest.jets
good_output = physics_conftest.good_output
good_metrics = physics_conftest.good_metrics
widths = physics_conftest.widths
run_documents = physics_conftest.run_documents
