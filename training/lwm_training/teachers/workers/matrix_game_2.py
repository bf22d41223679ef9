"""A worker that drives Matrix-Game 2 (MIT). NOT RUN by this project yet: neither weights nor a GPU were at hand. It
is written from the checkout's own Matrix-Game-2/inference.py, whose model loading and calls it follows.

    PYTHON matrix_game_2.py CHECKOUT/Matrix-Game-2 [--config_path ... --checkpoint_path ... --pretrained_model_path ...]

with the Python of Matrix-Game's environment. It draws the whole episode from one noise, so that the model keeps its
memory: 12 frames for each action, 8 for the first, since the first frame is the picture that was given.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import wire

TURN = 0.1  # of the camera in a frame, as the model was trained with
KEYS = {"w": (1, 0, 0, 0), "s": (0, 1, 0, 0), "a": (0, 0, 1, 0), "d": (0, 0, 0, 1)}
TURNS = {"up_rot": (TURN, 0), "down_rot": (-TURN, 0), "left_rot": (0, -TURN), "right_rot": (0, TURN)}
LATENTS = 3  # of an action: a block of the model, four frames each
model = None  # loaded when the worker starts


class MatrixGame:
    """The checkout's own loader, kept loaded."""

    def __init__(self, checkout):
        if not os.path.isfile(os.path.join(checkout, "inference.py")):
            sys.exit(f"{checkout} is not the folder Matrix-Game-2 of a checkout: it has no inference.py")
        os.chdir(checkout)
        sys.path.insert(0, checkout)
        import torch
        from inference import InteractiveGameInference, parse_args
        from utils.misc import set_seed

        self.torch, self.set_seed, self.args = torch, set_seed, parse_args()
        self.game = InteractiveGameInference(self.args)
        self.mode = self.game.config.pop("mode")
        if self.mode != "universal":
            raise ValueError(f"the configuration is of mode {self.mode!r}; this worker plays 'universal'")

    def episode(self, facts, body):
        torch, game = self.torch, self.game
        self.set_seed(facts["seed"])
        names = [action["action"] for action in facts["actions"]]
        latents = LATENTS * len(names)
        picture = self._picture(facts, body)
        conditions = {**self._look(picture, latents), **self._held(names)}
        like = {"device": game.device, "dtype": game.weight_dtype}
        noise = torch.randn([1, 16, latents, 44, 80], **like)
        conditions = {name: value.to(**like) for name, value in conditions.items()}
        with torch.no_grad():
            videos = game.pipeline.inference(
                noise=noise, conditional_dict=conditions, return_latents=False, mode=self.mode, profile=False
            )
        video = (torch.cat(videos, dim=1)[0].float() + 1) / 2  # (T, 3, H, W)
        first = 1
        for last in range(4 * LATENTS - 3, len(video) + 1, 4 * LATENTS):
            yield wire.scaled(torch, video[first:last].clamp(0, 1), facts["frame_size"])
            first = last

    def _picture(self, facts, body):
        from PIL import Image

        height, width = facts["picture"]
        image = self.game._resizecrop(Image.frombytes("RGB", (width, height), body), 352, 640)
        return self.game.frame_process(image)[None, :, None].to(dtype=self.game.weight_dtype, device=self.game.device)

    def _look(self, picture, latents):
        torch, game = self.torch, self.game
        padding = torch.zeros_like(picture).repeat(1, 1, 4 * (latents - 1), 1, 1)
        tiles = {"tiled": True, "tile_size": [44, 80], "tile_stride": [23, 38]}
        encoded = game.vae.encode(torch.cat([picture, padding], dim=2), device=game.device, **tiles).to(game.device)
        mask = torch.ones_like(encoded)
        mask[:, :, 1:] = 0
        return {
            "cond_concat": torch.cat([mask[:, :4], encoded], dim=1),
            "visual_context": game.vae.clip.encode_video(picture),
        }

    def _held(self, names):
        """Keyboard and mouse of every frame: 1 + 4 (latents - 1) of them, the first action's being fewer."""
        held = [name for name in names for _ in range(4 * LATENTS)][3:]
        keys = [KEYS.get(name, (0, 0, 0, 0)) for name in held]
        turns = [TURNS.get(name, (0, 0)) for name in held]
        return {
            "keyboard_cond": self.torch.tensor(keys, dtype=self.torch.float32)[None],
            "mouse_cond": self.torch.tensor(turns, dtype=self.torch.float32)[None],
        }


def load():
    global model
    model = MatrixGame(os.path.abspath(sys.argv.pop(1)))
    weights = os.path.basename(model.args.checkpoint_path)
    return {"name": "matrix-game-2", "actions": [*KEYS, *TURNS], "weights": weights}


if __name__ == "__main__":
    wire.serve(load, lambda facts, body: model.episode(facts, body))
