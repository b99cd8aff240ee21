"""The table of steps agrees with the table of permissions."""

from clusters.permissions import PERMISSIONS
from components.steps import EVERY_STEP, NAMES, STEPS, step_of


def test_every_right_of_a_step_is_a_permission():
    permissions = {permission.name for permission in PERMISSIONS}
    for step in STEPS:
        assert set(step.rights) <= permissions, step.name


def test_every_needed_permission_is_needed_by_a_step():
    rights = {right for step in STEPS for right in step.rights}
    needed_names = {permission.name for permission in PERMISSIONS if permission.is_needed}
    assert needed_names <= rights | set(EVERY_STEP)


def test_a_step_is_found_by_its_name():
    assert NAMES[0] == "prepare"
    assert step_of("search").logs == "search"
