"""A worker that drives Hunyuan-GameCraft 1.0. NOT RUN by this project yet: neither weights nor a GPU were at hand. It
is written from the checkout's own inference worker (hymm_sp/gradio/inference_worker.py), whose calls it follows.

    PYTHON gamecraft.py CHECKOUT

with the Python of GameCraft's environment (torch, torchvision, pillow, numpy), in which the checkout's requirements are
installed. The weights lie where its README puts them, under CHECKOUT/weights; MODEL_BASE, CKPT_PATH and the arguments
after CHECKOUT (as `--cpu-offload --infer-steps 8 --use-fp8`) are handed on to its own configuration.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import wire

ACTIONS = ("w", "a", "s", "d", "up_rot", "down_rot", "left_rot", "right_rot")
SIZE = (704, 1216)  # height, width
model = None  # loaded when the worker starts
FRAMES_PER_CHUNK = 33
NEGATIVE = (
    "overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, bad eyes, bad limbs, distortion, "
    "blurring, text, subtitles, static, picture, black border."
)


class GameCraft:
    """One sampler, kept loaded; the latents of the last chunk begin the next."""

    def __init__(self, checkout):
        if not os.path.isdir(os.path.join(checkout, "hymm_sp")):
            sys.exit(f"{checkout} is no checkout of Hunyuan-GameCraft-1.0: it has no folder hymm_sp")
        os.chdir(checkout)
        sys.path.insert(0, checkout)
        os.environ.setdefault("MODEL_BASE", os.path.join(checkout, "weights", "stdmodels"))
        import torch
        from hymm_sp.config import parse_args
        from hymm_sp.modules.parallel_states import initialize_distributed
        from hymm_sp.sample_inference import HunyuanVideoSampler

        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_PORT", "29605")
        initialize_distributed(seed=42)
        self.torch, self.args = torch, parse_args()
        default = os.path.join(checkout, "weights", "gamecraft_models", "mp_rank_00_model_states.pt")
        self.args.ckpt = os.environ.get("CKPT_PATH", default)
        self.device = torch.device("cuda")
        self.sampler = HunyuanVideoSampler.from_pretrained(self.args.ckpt, args=self.args, device=self.device)

    def episode(self, facts, body):
        """Chunk by chunk; the picture is fitted to what the model draws, and what it draws is scaled down here."""
        self._begin(facts, body)
        for action in facts["actions"]:
            yield self._chunk(action)

    def _begin(self, facts, body):
        torch, size = self.torch, tuple(facts["picture"])
        picture = torch.frombuffer(bytearray(body), dtype=torch.uint8).view(*size, 3)
        from PIL import Image
        from torchvision import transforms

        image = Image.fromarray(picture.numpy())
        scale = max(SIZE[0] / size[0], SIZE[1] / size[1])
        fitted = transforms.Resize((round(size[0] * scale), round(size[1] * scale)))(image)
        pixels = transforms.functional.to_tensor(transforms.CenterCrop(SIZE)(fitted)) * 2 - 1
        vae = self.sampler.vae
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16):
            self.sampler.pipeline.vae.enable_tiling()
            latents = vae.encode(pixels[None, :, None].to(self.device)).latent_dist.sample().to(torch.float16)
            self.sampler.pipeline.vae.disable_tiling()
        self.last = latents * vae.config.scaling_factor
        self.reference, self.images = self.last.clone(), [image]
        self.first, self.facts = True, facts

    def _chunk(self, facts):
        args = self.args
        noop = facts["action"] == "NOOP"  # it knows none: forward at speed 0 stands still
        outputs = self.sampler.predict(
            prompt=self.facts["prompt"] or "Realistic, High-quality.",
            action_id="w" if noop else facts["action"],
            action_speed=0.0 if noop else facts["speed"],
            is_image=self.first,
            size=SIZE,
            seed=self.facts["seed"],
            last_latents=self.last,
            ref_latents=self.reference,
            video_length=FRAMES_PER_CHUNK,
            guidance_scale=args.cfg_scale,
            num_images_per_prompt=1,
            negative_prompt=NEGATIVE,
            infer_steps=args.infer_steps,
            flow_shift=args.flow_shift_eval_video,
            use_linear_quadratic_schedule=getattr(args, "use_linear_quadratic_schedule", False),
            linear_schedule_end=getattr(args, "linear_schedule_end", 0),
            use_deepcache=getattr(args, "use_deepcache", False),
            cpu_offload=getattr(args, "cpu_offload", 0),
            ref_images=self.images,
            output_dir=None,
            return_latents=True,
        )
        self.last, self.reference, self.first = outputs["last_latents"], outputs["ref_latents"], False
        video = outputs["samples"][0][0].float().clamp(0, 1)  # (3, T, H, W)
        return wire.scaled(self.torch, video.movedim(0, 1), self.facts["frame_size"])


def load():
    global model
    model = GameCraft(os.path.abspath(sys.argv.pop(1)))
    weights = f"{os.path.basename(model.args.ckpt)}, {os.path.getsize(model.args.ckpt)} bytes"
    return {"name": "gamecraft", "actions": ACTIONS, "weights": weights}


if __name__ == "__main__":
    wire.serve(load, lambda facts, body: model.episode(facts, body))
