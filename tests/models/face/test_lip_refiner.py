"""The lip refiner: lips read again in a crop of the mouth, and a portrait encoded with them."""

import pytest
import torch
from support.mouths import frontal_face, rotated
from support.small_model import PRESET, face_points, stir

from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.lip_refiner import LipRefiner, refined_lips
from letstalk_rt.models.geometry.landmarks import LIPS
from letstalk_rt.models.geometry.mouth_crop import CROP_CENTRE, CROP_SIZE
from letstalk_rt.models.parts import with_parts

GAP = 12.0


@pytest.fixture
def refiner():
    """Reads every mouth as the frontal one: only its prior says anything."""
    refiner = LipRefiner().eval()
    torch.nn.init.zeros_(refiner.heat.weight)
    torch.nn.init.zeros_(refiner.heat.bias)
    refiner.mean_points.copy_(frontal_face(GAP)[0, LIPS] + torch.tensor(CROP_CENTRE))
    return refiner


class TestReading:
    @pytest.mark.parametrize(("scale", "angle"), [(0.6, 0.0), (0.8, 0.3), (0.5, -0.2)])
    def test_lips_are_found_in_their_crop_and_placed_in_the_image(self, refiner, scale, angle):
        true = rotated(frontal_face(GAP, scale=scale), angle) + torch.tensor([130.0, 150.0])
        seen = rotated(frontal_face(GAP / 2, scale=scale), angle) + torch.tensor([130.0, 150.0])
        found = refined_lips(refiner, torch.zeros(1, 3, 256, 256), seen / 128 - 1)
        assert ((found - (true / 128 - 1))[:, LIPS].abs() * 128).max() < 1.0

    def test_other_landmarks_stay(self, refiner):
        points = frontal_face(GAP, scale=0.6, at=(128, 150)) / 128 - 1
        found = refined_lips(refiner, torch.zeros(1, 3, 256, 256), points)
        others = [i for i in range(points.shape[1]) if i not in LIPS]
        assert torch.equal(found[:, others], points[:, others])

    def test_a_batch_is_read_as_one_by_one(self):
        torch.manual_seed(0)
        refiner, crops = LipRefiner().eval(), torch.rand(3, 3, *CROP_SIZE) * 2 - 1
        with torch.no_grad():
            single = torch.cat([refiner(crop[None]) for crop in crops])
            torch.testing.assert_close(refiner(crops), single, atol=1e-3, rtol=1e-4)


class TestPortraits:
    @pytest.fixture
    def model(self, refiner):
        torch.manual_seed(0)
        model = AvatarModel(with_parts(PRESET, {*PRESET.parts, "lip_refiner"}))
        stir(model)
        landmarks = model.autoencoder.landmarks
        landmarks.set_mean_landmarks(face_points())
        model.lip_refiner.load_state_dict(refiner.state_dict())
        return model.eval().requires_grad_(False)

    def test_the_portrait_latent_holds_the_refined_lips(self, model):
        image = torch.rand(2, 3, 256, 256) * 2 - 1
        plain, refined = model.autoencoder.encode_portrait(image), model.encode_portrait(image)
        wanted = refined_lips(model.lip_refiner, image, plain.points)
        before, after = (
            (features.points - wanted)[:, LIPS].norm(dim=-1).mean() for features in (plain, refined)
        )
        assert after < 0.3 * before
        again = model.autoencoder.landmarks.decode_landmarks(refined.latent)
        torch.testing.assert_close(again, refined.points)

    def test_without_a_refiner_portraits_are_as_encoded(self):
        model = AvatarModel(PRESET).eval()
        image = torch.rand(1, 3, 256, 256) * 2 - 1
        with torch.no_grad():
            expected = model.autoencoder.encode_portrait(image).latent
            assert torch.equal(model.encode_portrait(image).latent, expected)
