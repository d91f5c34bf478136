"""Cameras to the grid: ViT, depth distribution, lift.

Letters: B samples, N cameras, H and W pixels, h and w feature pixels, D depth bins, C channels, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bev.grid import BEVGrid
from bev.layers import ConvBlock, ResidualBlock
from bev.lift.groups import LiftGroups, lift_splat_groups
from bev.lift.table import DepthBins, LiftTable, build_lift_table, lift_splat, pixel_rays
from sensors.batch import CameraBatch
from sensors.camera.vit import VisionTransformer
from sensors.modality import Encoded, SensorFeatures

# Mean and deviation of ImageNet's RGB values in 0..1, which published ViT weights expect.
_RGB_MEAN = (0.485, 0.456, 0.406)
_RGB_STD = (0.229, 0.224, 0.225)


class CameraEncoder(nn.Module):
    """`CameraBatch` -> the grid; beside it `depth_logits` [B, N, h, w, D] and, before the lift, `features` [B * N, c, h, w].

    Every token is told where it looks: the direction of its ray in the reference frame and the camera's place pass through a
    small network into the token (so one set of weights serves any rig).
    """

    rgb_mean: Tensor
    rgb_std: Tensor
    beside: torch.cuda.Stream | None = None
    """For the lift's table, where a CUDA graph is recorded; None: it comes first."""

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        image_size: tuple[int, int],
        patch_px: int,
        stride_px: int,
        vit_channels: int,
        dim: int,
        bins: DepthBins,
        grid: BEVGrid,
        z_range_m: tuple[float, float],
        context_channels: int,
        channels: int,
        bev_blocks: int,
        lift_samples: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.vit = vit
        self.image_size, self.patch_px, self.stride_px = image_size, patch_px, stride_px
        self.bins, self.grid, self.z_range_m = bins, grid, z_range_m
        self.lift_samples = lift_samples
        self.calibration = nn.Sequential(nn.Linear(6, dim), nn.GELU(), nn.Linear(dim, dim))
        self.depth = nn.Conv2d(vit_channels, bins.count, 1)
        self.context = nn.Conv2d(vit_channels, context_channels, 1)
        self.bev = nn.Sequential(
            ConvBlock(context_channels, channels), *(ResidualBlock(channels) for _ in range(bev_blocks))
        )
        self.register_buffer("rgb_mean", torch.tensor(_RGB_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("rgb_std", torch.tensor(_RGB_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, batch: CameraBatch) -> Encoded:
        self._check(batch)
        # An absent camera's buffer and calibration may hold anything; nothing of it may reach the arithmetic.
        matrix, device = batch.present[:, :, None, None], batch.images.device
        intrinsics = torch.where(matrix, batch.intrinsics, torch.eye(3, device=device)).float()
        reference_T_camera = torch.where(matrix, batch.reference_T_camera, torch.eye(4, device=device)).float()
        with self._beside(device):
            table = batch.lift if batch.lift is not None else self.table(intrinsics, reference_T_camera, batch.present)
        return self.look(batch.images, self.rays(intrinsics, reference_T_camera), batch.present, table)

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """What is done in here runs beside the pictures' network, which needs nothing of it, on the stream `beside`."""
        if self.beside is None:
            yield
            return
        self.beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.beside):
            yield

    def look(self, images: Tensor, rays: Tensor, present: Tensor, table: LiftTable | LiftGroups) -> Encoded:
        """Pictures with their look-up tables: [B, N, 3, H, W] uint8, [B, N, h' * w', 6] as of `rays`, [B, N] bool."""
        shape, cameras = present.shape, present
        present = present[:, :, None, None, None]
        images = (torch.where(present, images, 0).float() - self.rgb_mean) / self.rgb_std
        embedding = self.calibration(rays.flatten(0, 1))
        features = self.vit(images.flatten(0, 1), embedding)
        if self.beside is not None:
            torch.cuda.current_stream(images.device).wait_stream(self.beside)
        depth_logits = self.depth(features).permute(0, 2, 3, 1).unflatten(0, shape)
        context = self.context(features).permute(0, 2, 3, 1).unflatten(0, shape)
        context = torch.where(present, context, 0.0)
        with torch.autocast(images.device.type, enabled=False):
            probabilities = depth_logits.float().softmax(-1)
            if isinstance(table, LiftTable):
                canvas = lift_splat(context, probabilities, table)
            else:
                canvas = lift_splat_groups(context.float(), probabilities, table)
        visible = table.visible & cameras[:, :, None, None]
        bev = SensorFeatures(self.bev(canvas), visible.any(1).float(), visible.float().mean((2, 3)))
        return Encoded(bev, {"depth_logits": depth_logits, "features": features})

    def rays(self, intrinsics: Tensor, reference_T_camera: Tensor) -> Tensor:
        """[B, N, h' * w', 6] unit ray of each token in the reference frame, and the camera's place in 10 m."""
        return pixel_rays(intrinsics, reference_T_camera, image_size=self.image_size, stride=self.patch_px)

    def table(self, intrinsics: Tensor, reference_T_camera: Tensor, present: Tensor) -> LiftTable:
        return build_lift_table(
            intrinsics,
            reference_T_camera,
            present,
            image_size=self.image_size,
            stride=self.stride_px,
            bins=self.bins,
            grid=self.grid,
            z_range_m=self.z_range_m,
            samples=self.lift_samples,
        )

    def _check(self, batch: CameraBatch) -> None:
        samples, cameras = batch.present.shape
        expected = {
            "images": ((samples, cameras, 3, *self.image_size), batch.images),
            "intrinsics": ((samples, cameras, 3, 3), batch.intrinsics),
            "reference_T_camera": ((samples, cameras, 4, 4), batch.reference_T_camera),
        }
        for name, (shape, tensor) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"cameras.{name}: expected {list(shape)}, got {list(tensor.shape)}")
