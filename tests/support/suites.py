"""Which tests `make test` leaves to `make test-system`.

`make test` keeps lint, types, the units and one real path through every feature; what needs the
machine for itself, starts many programs or trains for minutes is in `make test-system`, which CI
runs, too. Both together are all tests but those marked `slow` or `gpu`.
"""

SYSTEM = (
    "benchmarks/",
    "browser/test_appearance.py",
    "browser/test_camera.py",
    "browser/test_cluster.py",
    "browser/test_conversation.py",
    "browser/test_failures.py",
    "browser/test_overlay.py",
    "browser/test_recorded.py",
    "browser/test_stats_panel.py",
    "browser/test_text_box.py",
    "browser/test_tokens.py",
    "dubbing/test_latent_dub.py::test_a_film_is_dubbed_by_the_command",
    "fuzz/",
    "inference/test_instruction_sets.py::test_the_numeric_tests_hold",
    "paper/test_commands.py",
    "paper/test_killed.py",
    "paper/test_precision.py",
    "server/test_access.py::test_a_request_is_answered_to_whom_the_table_names_and_nobody_else",
    "server/cluster/test_behind_dns.py",
    "server/cluster/test_behind_haproxy.py",
    "server/webrtc/test_peers.py::test_sessions_opened_and_closed_in_a_row_leave_nothing_behind",
    "test_install.py",
    "training/test_paper_scale.py",
    "training/test_recipe.py",
    "training/test_wav2vec_training.py",
)
"""Beginnings of the names of tests, below the folder `tests`."""


def is_system(test: str) -> bool:
    """Return whether a test, by its name below the folder `tests`, is in `make test-system`."""
    return test.startswith(SYSTEM)
