# SPDX-License-Identifier: Apache-2.0
"""Colours of ranges and heights: four colour maps from their public definitions, without a plotting library."""

import base64
import zlib
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError

COLOUR_MAPS = ("Spectral", "rainbow", "turbo", "coolwarm")
NO_RETURN = 0.82  # grey level of rays without return
HEIGHT_LIMITS_M = (-2.0, 4.0)

# ColorBrewer 2.0 "Spectral", 11 classes (Brewer and Harrower), RGB of 8 bit.
_SPECTRAL = """
    158   1  66
    213  62  79
    244 109  67
    253 174  97
    254 224 139
    255 255 191
    230 245 152
    171 221 164
    102 194 165
     50 136 189
     94  79 162
"""
# Smooth cool-warm diverging map at 33 evenly spaced points (K. Moreland, "Diverging Color Maps for Scientific
# Visualization", 2009).
_COOLWARM = """
    0.22980570 0.29871797 0.75368315
    0.26623388 0.35309484 0.80146676
    0.30386891 0.40653530 0.84495867
    0.34280448 0.45875762 0.88372590
    0.38301334 0.50941904 0.91738782
    0.42436961 0.55814809 0.94561959
    0.46666708 0.60456257 0.96815491
    0.50963520 0.64828077 0.98478814
    0.55295316 0.68892933 0.99537561
    0.59626216 0.72614911 0.99983620
    0.63917621 0.75959995 0.99815118
    0.68129128 0.78896471 0.99036323
    0.72219329 0.81395274 0.97657471
    0.76146495 0.83430288 0.95694527
    0.79869164 0.84978614 0.93168865
    0.83346656 0.86020798 0.90106884
    0.86539520 0.86541021 0.86539556
    0.89778718 0.84893705 0.82088055
    0.92412759 0.82738488 0.77450847
    0.94446852 0.80092744 0.72673615
    0.95885295 0.76976775 0.67800794
    0.96732803 0.73413281 0.62875176
    0.96995414 0.69426668 0.57937545
    0.96681118 0.65042116 0.53026376
    0.95800306 0.60284243 0.48177591
    0.94366087 0.55175097 0.43424368
    0.92394492 0.49730856 0.38797022
    0.89904617 0.43955947 0.34322960
    0.86918685 0.37831309 0.30026718
    0.83462054 0.31287445 0.25930120
    0.79563175 0.24128379 0.22052563
    0.75253493 0.15724607 0.18411512
    0.70567316 0.01555616 0.15023281
"""
# Turbo (A. Mikhailov, Google, 2019): its 256 x 3 table of five decimals as differences along each channel, int16,
# deflated, base 85.
_TURBO = (
    "c-k$LdvHxx6vp>Hd!L(oZ%Wi-"
    "8tN5hB8E1^vs61Gr6k&VwS<%q3H3@1+K5*x5h_~7qZDZ~qNSxuLpvjA&=x_`A;L6>cM@6*LeAc6t*$>hYtEV3`;Rqyec$g}-"
    "G)@lOR_{Bl6z#nTr0EXM{=r6ltbm~va4(_n@OLn7k9;FaaI(IpGATAQY;slV!9YF-Vp;tchNzFi=Y7dm#XL-"
    "9j61dgVxa)YDw2|7tY6cjKF%RfCI1vmclG}ABMqT7yz*l2SZ>4B*SdTfp4G)E`z`*9Dz%5Ki<PgnoQr)J?bHrigO}LF5!1ZJ4>8W"
    "r@2a21?r}1rxW#ReN;cxFS>DVn!Cc??jCW=-8*ib>-d7cFs=r^5FfY?-72@lEp#`zneJ$}n;UR1>)kp-"
    "$LcWc*Fi474$)c*ZB(7Qud3BmRiRF+VzpoGRGU?<TA*gAL^W9TP!Xzus&lS7C!9Ub1}D>*;KVtRPQa;=r{oT~T&BqWGD2!uEzXF&"
    "tkwdNEZ!8+q8V#+lg>~f<<T-qr$maQXlg;49%3b)!~?huSK}g_fn#wn_F*NOV-"
    "P*K3zbj`#jp?Z;R{#*AHaL?2E;&HXb8sE*a~~x?z3OpRW{R3v7>C9?P^=w=d5R{O}RO0elmGxrO7a9W~7NV(WaFNHP5`;-"
    "Z`(>+vE9LuGBgDQ@x1Qn4{D6G@Yg=>LfizkJNALcs-Cc>Zg0_?mAj`(vdnsx6<Ldscxu4wX3BD^-"
    "Mit#cI@Tbxl>WYUfm`D&g<Ey2$6Ns*3Ngb5*G;e7?l@W$KhVrVgn>wM%VNo75`xshX#zsIe+R^;4ZyOBGa4om)<sQ{;T-"
    "tZ_1&iOvwGi__X^;`kjaAIKZBg4HhipV=%qSEkB$<sjKhMl!KlJ`&eNsW>FQXZ^E8x)>)0i*BNg2#CjYg-"
    "*~u+DutAokr2C)RtVT#ZqQ&D`w#|9EGp3_Kgvt7B0Xs*vo8w4vS$XjAwEOKu_oht)MZ40NO|PuDxOZw&nJ$Jz<a8Ble*E)gG_~b{"
    "Tt-U}J2!b?jYp(Hu90rogN>E6gG@*GxC5W}-"
    "<l<G7N{1e0Q>n%QQ)$ueu$t=;C3DKj@ry$Q2Xw!clX8Fr)H&;8HZi}t3yZ|kiKVbB61p$qhdf&8u{NaGwW<Rq<yJlF|^a2QU(d8p"
    "zk>Nr=S_yXs!Gxow*9EziH63)a7o_BBJoY20ZI<zFXHkcS}7px8J3(ODn4+H{b{*C?#{wV*0kY7R;hYSp97;?dv=S%gy<a^>4x!G"
    "=l+r+KZ+nAUbPR&uZLJe2V)ir0QlkUVg<?KngJS@^gQ*n&uQD?e^`IwCDv6@L<2no;z9^2D)hs|N7-"
    "m*PyI~&GY)tURIhRLll|ClF6*oL-^?QY}kWV@94POuU7srk$7GP!1k8D@H!2-"
    "CnA@1A$fyWo|1r@d2NiC5~Cdsn<#@0sUk+G9*Sv!89Yo0Hr-"
    "+{W4uZ9Y2|WG@%NL3j$$n2KNFY4orI4Wo}apT)e(h+2pk<|awZ5(~v=Vx8C`@_GLi@IOy%5V>NBn9bQ9Dta?nuDC;g(sufUH(wWO"
    "K#w`ozvCY6n}hQ(g{c~Zui(o(e{*Il6kQYuV8H_e!2W0qU?U7?k2<kOaX6f{n$4SV1O9-"
    "&;RU>pK59haOlwE#N_{AnhR|>tOOt3C&7n-nrd(Q2Tlob)@&-Oke^4n^@Dz9G0o9XW@}CziM1<(XGxg=Y9WO?3DpJIM@X06|"
)


@cache
def table(name: str) -> NDArray:
    """[256, 3] float64 RGB in 0..1 of a colour map; read-only.

    Raises:
        ConfigError: if there is no such map.
    """
    x = np.linspace(0, 1, 256)
    if name == "Spectral":
        rgb = _interpolated(_SPECTRAL, x) / 255
    elif name == "coolwarm":
        rgb = _interpolated(_COOLWARM, x)
    elif name == "rainbow":
        rgb = np.stack([np.abs(2 * x - 0.5), np.sin(np.pi * x), np.cos(np.pi / 2 * x)], axis=-1).clip(0, 1)
    elif name == "turbo":
        steps = np.frombuffer(zlib.decompress(base64.b85decode(_TURBO)), dtype="<i2").reshape(3, 256)
        rgb = steps.cumsum(axis=1, dtype=np.int64).T / 1e5
    else:
        raise ConfigError(f"colour map {name!r} is not known; use one of {', '.join(COLOUR_MAPS)}")
    rgb.setflags(write=False)
    return rgb


def colours(values: ArrayLike, name: str) -> NDArray:
    """Values [...] in 0..1 (clipped) -> RGB [..., 3] float32 in 0..1."""
    index = (np.asarray(values) * 256).astype(np.int64)
    return table(name)[index.clip(0, 255)].astype(np.float32)


def depth_limits(range_map: NDArray) -> tuple[float, float]:
    """(near, far) metres for :func:`depth_colours` as the published library picks them: the 1 % quantile of the
    returns and the 99 % quantile of all values. A map without returns gets (1, 2)."""
    ranges = np.asarray(range_map, dtype=np.float64)
    if not (ranges > 0).any():
        return 1.0, 2.0
    near = float(np.quantile(ranges[ranges > 0], 0.01))
    return near, max(float(np.quantile(ranges, 0.99)), 1.01 * near)


def depth_colours(
    range_map: ArrayLike, near_m: float = 5.0, far_m: float = 100.0, name: str = "Spectral"
) -> NDArray:
    """Ranges [...] -> RGB [..., 3] float32 in 0..1, logarithmic from ``near_m`` (1) to ``far_m`` (0 of the map); rays
    without return are grey."""
    ranges = np.asarray(range_map, dtype=np.float32)
    seen = ranges > 0
    logs = np.log(np.where(seen, ranges, np.float32(near_m)))
    values = 1 - (logs - np.log(near_m)) / (np.log(far_m) - np.log(near_m))
    return np.where(seen[..., None], colours(values.clip(0, 1), name), np.float32(NO_RETURN))


def height_colours(heights: ArrayLike) -> NDArray:
    """Heights [...] in the LiDAR frame, metres -> RGB [..., 3] uint8, from -2 m (violet) to 4 m (red)."""
    low, high = HEIGHT_LIMITS_M
    values = (np.clip(np.asarray(heights, dtype=np.float64), low, high) - low) / (high - low)
    return to_uint8(colours(values, "rainbow"))


def to_uint8(rgb: NDArray, rounded: bool = False) -> NDArray:
    """RGB in 0..1 -> uint8, truncated (as in published pictures) or rounded (as in published videos)."""
    return (rgb * 255 + (0.5 if rounded else 0.0)).astype(np.uint8)


def _interpolated(points: str, x: NDArray) -> NDArray:
    rgb = np.array(points.split(), dtype=np.float64).reshape(-1, 3)
    at = np.linspace(0, 1, len(rgb))
    return np.stack([np.interp(x, at, channel) for channel in rgb.T], axis=-1)
