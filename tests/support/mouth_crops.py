"""Open mouths of drawn people, as training data of the mouth painter."""

import numpy as np
import torch

from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.geometry.mouth_crop import FINE
from letstalk_rt.training.data.mouth_crops import KINDS, STORED_SIZE, MouthCrops
from support.mouths import frontal_face, skin

MIDDLE = torch.tensor([80.0, 58.0])


def make_crops(people: int = 6, frames: int = 5) -> MouthCrops:
    """Return mouths that are red inside and open wider in each frame; the first two are stills."""
    crops, points, person, time, kind = [], [], [], [], []
    rng = np.random.default_rng(0)
    for who in range(people):
        still = who < 2
        for frame in range(1 if still else frames):
            face = frontal_face(8.0 + frame)[0] + MIDDLE
            image = skin(200)[: STORED_SIZE[0], : STORED_SIZE[1]].copy()
            gap = int(4 + frame / 2)
            image[58 - gap : 58 + gap, 55:105] = (200, 4 * who, 10)
            noise = rng.integers(0, 8, image.shape, dtype=np.uint8)
            crops.append(image + noise)
            points.append(face.numpy())
            person.append(who)
            time.append(frame)
            kind.append(KINDS.index("openmouth" if still else "real"))
    whole = np.array(person)
    stills = np.stack(crops[:2]).repeat(FINE, 1).repeat(FINE, 2)
    return MouthCrops(
        stills,
        np.stack(crops[2:]),
        np.stack(points).astype(np.float32),
        whole,
        np.array(time),
        np.array(kind),
        whole,
        np.ones(len(whole), np.float32),
        (rng.normal(size=(len(whole), MOUTH_SOUND)) * (whole > 1)[:, None]).astype(np.float16),
    )
