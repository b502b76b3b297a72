"""What one frame passes on its way from speech to reader: no more files than can be followed."""

import threading

import trace_frame
from trace_frame import CallRecorder, counts, names_by_file

from letstalk_rt.audio.hop_buffer import HopBuffer
from letstalk_rt.session.pacing import LeadTime

MOST_FILES, MOST_CLASSES = 62, 72
"""What may only become less; the aim is 35 files and 45 classes."""


def test_a_frame_passes_few_files_and_classes():
    names = trace_frame.trace()
    assert {"inference/pipeline.py", "models/motion/denoiser.py", "session/session.py"} <= set(
        names
    )
    found = counts(names)
    assert found["files"] <= MOST_FILES, sorted(names)
    assert found["classes"] <= MOST_CLASSES, names


def test_calls_of_other_threads_are_recorded_and_only_while_it_is_on():
    recorder = CallRecorder()
    with recorder.installed():
        HopBuffer(4)
        recorder.is_on = True
        thread = threading.Thread(target=lambda: LeadTime().note([0.1]))
        thread.start()
        thread.join()
        recorder.is_on = False
        HopBuffer(4)
    LeadTime().lead_s  # noqa: B018 (it is the call that counts)
    names = names_by_file(recorder.called)
    assert names == {"session/pacing.py": {"LeadTime.note"}}
    assert counts(names) == {"files": 1, "classes": 1, "functions": 1}
