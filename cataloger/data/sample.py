"""The generated sample catalog: a long-tailed tree, brands, attributes, typos, gaps, several languages, repeats.

Rows are a function of seed and row number, built column-wise with NumPy and Arrow: a million in seconds. It is made to
be learnable, not to resemble any real shop; quality figures come from real catalogs.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.config import SampleConfig
from cataloger.data.drawing import draw
from cataloger.errors import ConfigError
from cataloger.infra.storage import locate
from cataloger.taxonomy import SEPARATOR

ROWS_PER_FILE = 250_000
ROWS_PER_ROW_GROUP = 50_000
BLOCK = 10_000
# Of the rows while they are made: the number of the category, and of the product that a row repeats.
LEAF, SOURCE = "leaf", "source"

# Level 1 → level 2 → leaves as "english/chinese".
TREE: dict[str, dict[str, str]] = {
    "Grocery": {
        "Beverages": "green tea/绿茶 black coffee/黑咖啡 orange juice/橙汁 mineral water/矿泉水 ginger ale/姜汁汽水 oat drink/燕麦饮",
        "Snacks": "potato chips/薯片 salted almonds/盐焗杏仁 dark chocolate/黑巧克力 rice crackers/米饼 fruit gummies/水果软糖",
        "Baking": "wheat flour/小麦粉 cane sugar/蔗糖 vanilla extract/香草精 baking powder/泡打粉 cocoa powder/可可粉",
        "Canned Food": "tomato soup/番茄汤 tuna chunks/金枪鱼块 sweet corn/甜玉米 kidney beans/红芸豆",
    },
    "Electronics": {
        "Computers": "gaming laptop/游戏笔记本 mechanical keyboard/机械键盘 wireless mouse/无线鼠标 curved monitor/曲面显示器 webcam/摄像头",
        "Audio": "over-ear headphones/头戴耳机 bluetooth speaker/蓝牙音箱 soundbar/回音壁 turntable/唱片机 microphone/麦克风",
        "Phones": "smartphone/智能手机 phone case/手机壳 charging cable/充电线 power bank/充电宝 screen protector/屏幕保护膜",
        "Photography": "mirrorless camera/微单相机 tripod/三脚架 zoom lens/变焦镜头 memory card/存储卡",
    },
    "Clothing": {
        "Men": "denim jeans/牛仔裤 polo shirt/马球衫 wool sweater/羊毛衫 leather belt/皮带 rain jacket/雨衣",
        "Women": "summer dress/夏裙 silk blouse/真丝衬衫 pleated skirt/百褶裙 yoga leggings/瑜伽裤 cashmere scarf/羊绒围巾",
        "Shoes": "running shoes/跑鞋 hiking boots/登山靴 leather loafers/乐福鞋 beach sandals/凉鞋 canvas sneakers/帆布鞋",
        "Accessories": "sunglasses/太阳镜 baseball cap/棒球帽 knit gloves/针织手套 canvas tote/帆布包",
    },
    "Home": {
        "Kitchen": "frying pan/平底锅 chef knife/主厨刀 coffee grinder/磨豆机 cutting board/砧板 stock pot/汤锅 salad bowl/沙拉碗",
        "Bedroom": "memory foam pillow/记忆枕 duvet cover/被套 mattress topper/床垫 blackout curtains/遮光窗帘",
        "Lighting": "desk lamp/台灯 led bulb/灯泡 floor lamp/落地灯 string lights/串灯",
        "Storage": "shoe rack/鞋架 laundry basket/洗衣篮 drawer organizer/抽屉收纳 wall shelf/墙架",
    },
    "Sports": {
        "Fitness": "yoga mat/瑜伽垫 kettlebell/壶铃 resistance band/弹力带 foam roller/泡沫轴 jump rope/跳绳",
        "Cycling": "road helmet/公路头盔 bike lock/自行车锁 floor pump/打气筒 saddle bag/尾包",
        "Camping": "dome tent/圆顶帐篷 sleeping bag/睡袋 camp stove/露营炉 headlamp/头灯",
        "Ball Games": "football/足球 basketball/篮球 tennis racket/网球拍 table tennis bat/乒乓球拍",
    },
    "Beauty": {
        "Skin Care": "face cream/面霜 sunscreen lotion/防晒乳 lip balm/润唇膏 clay mask/泥膜",
        "Hair Care": "repair shampoo/修护洗发水 hair conditioner/护发素 hair dryer/吹风机 styling wax/发蜡",
        "Fragrance": "eau de parfum/香水 scented candle/香薰蜡烛 room spray/室内喷雾",
    },
    "Toys": {
        "Building": "building bricks/积木 marble run/滚珠轨道 model railway/模型火车",
        "Puzzles": "jigsaw puzzle/拼图 wooden brain teaser/木制益智 board game/桌游",
        "Outdoor Play": "kick scooter/滑板车 water pistol/水枪 kite/风筝",
    },
}
BRANDS = np.array(
    [
        "Aurelia",
        "Bramble",
        "Corvid",
        "Delphine",
        "Everpeak",
        "Fjordly",
        "Gantry",
        "Hollis",
        "Isobar",
        "Juniper",
        "Kestrel",
        "Lumen",
        "Meridian",
        "Northsea",
        "Oakline",
        "Palisade",
    ]
)
COLOURS = np.array(["black", "white", "navy", "red", "green", "sand", "grey", "copper", "ivory", "teal"])
COLOURS_ZH = np.array(["黑色", "白色", "藏青", "红色", "绿色", "沙色", "灰色", "古铜", "象牙白", "青色"])
SIZES = np.array(["small", "medium", "large", "250g", "500ml", "1kg", "2-pack", "12-pack", "42cm", "XL"])
WORDS = np.array(
    ["classic", "premium", "everyday", "compact", "original", "deluxe", "organic", "lightweight", "ultra", "vintage"]
)
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True)
class _Leaves:
    paths: Strings
    english: Strings
    chinese: Strings
    shares: npt.NDArray[np.float64]


def generate(config: SampleConfig) -> int:
    """Write the catalog as Parquet files of up to 250,000 rows; the number of rows. Raises ConfigError, StorageError."""
    if config.rows < 1:
        raise ConfigError(f"--rows {config.rows}: must be at least 1")
    folder = locate(config.output)
    leaves = _leaves()
    for number, start in enumerate(range(0, config.rows, ROWS_PER_FILE)):
        table = _rows(leaves, config, start, min(ROWS_PER_FILE, config.rows - start))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=ROWS_PER_ROW_GROUP, compression="zstd")
        (folder / f"part-{number:05d}.parquet").write(buffer.getvalue())
    return config.rows


def _leaves() -> _Leaves:
    paths, english, chinese = [], [], []
    for top, middles in TREE.items():
        for middle, names in middles.items():
            for name, name_zh in re.findall(r"([^/]+)/(\S+) ?", names):
                paths.append(SEPARATOR.join((top, middle, name.title())))
                english.append(name)
                chinese.append(name_zh)
    # Zipf's law over a fixed random ranking: a few large heads, a tail of rare categories.
    ranks = np.random.default_rng(7).permutation(len(paths)) + 1
    shares = 1.0 / ranks
    return _Leaves(np.array(paths, object), np.array(english, object), np.array(chinese, object), shares / shares.sum())


def _rows(leaves: _Leaves, config: SampleConfig, start: int, count: int) -> pa.Table:
    """Rows start … start + count; always drawn in whole blocks, so that a row does not depend on how many were asked for."""
    first, last = start // BLOCK, (start + count - 1) // BLOCK
    table = pa.concat_tables([_block(leaves, config, number) for number in range(first, last + 1)])
    table = table.slice(start - first * BLOCK, count)
    if config.images:
        drawn = zip(table.column(LEAF).to_pylist(), table.column(SOURCE).to_pylist(), strict=True)
        pictures = [draw(leaf, [config.seed, source, 1]) for leaf, source in drawn]
        table = table.append_column("image", pa.array(pictures, pa.binary()))
    return table.drop_columns([LEAF, SOURCE])


def _block(leaves: _Leaves, config: SampleConfig, number: int) -> pa.Table:
    rng = np.random.default_rng([config.seed, number])
    leaf = rng.choice(len(leaves.paths), BLOCK, p=leaves.shares)
    brand, colour, size, word = (rng.integers(len(words), size=BLOCK) for words in (BRANDS, COLOURS, SIZES, WORDS))
    kind = rng.random(BLOCK)
    english = _join(BRANDS[brand], WORDS[word], leaves.english[leaf], COLOURS[colour], SIZES[size])
    reordered = _join(leaves.english[leaf], SIZES[size], BRANDS[brand])
    chinese = _join(BRANDS[brand], COLOURS_ZH[colour] + leaves.chinese[leaf], SIZES[size])
    mixed = _join(leaves.chinese[leaf], leaves.english[leaf], SIZES[size])
    vague = _join(BRANDS[brand], WORDS[word], COLOURS[colour], SIZES[size])
    title = np.select([kind < 0.05, kind < 0.13, kind < 0.17, kind < 0.40], [vague, chinese, mixed, reordered], english)
    typo = np.flatnonzero(rng.random(BLOCK) < 0.05)
    place = rng.random(len(typo))
    title[typo] = [_swap_letters(title[row], at) for row, at in zip(typo, place, strict=True)]
    middle = np.array([path.split(SEPARATOR)[1].lower() for path in leaves.paths], object)
    description = _join(np.full(BLOCK, "A", object), WORDS[word], "choice for", middle[leaf], "by", BRANDS[brand])
    price = np.round(rng.lognormal(3.0, 1.0, BLOCK), 2)
    # Every 30th row repeats an earlier product of its block under a new id, as marketplaces do.
    source = np.arange(BLOCK)
    repeats = source[1:][rng.random(BLOCK - 1) < 1 / 30]
    source[repeats] = (rng.random(len(repeats)) * repeats).astype(int)
    columns = {
        "id": pa.array([f"P{row:010d}" for row in range(number * BLOCK, (number + 1) * BLOCK)]),
        "title": pa.array(title[source], pa.string()),
        "brand": pa.array(BRANDS[brand][source], pa.string(), mask=(rng.random(BLOCK) < 0.1)),
        "description": pa.array(description[source], pa.string(), mask=(rng.random(BLOCK) < 0.3)),
        "price": pa.array(price[source]),
        LEAF: pa.array(leaf[source]),
        SOURCE: pa.array(number * BLOCK + source),
    }
    if config.labelled:
        columns["category_path"] = pa.array(leaves.paths[leaf][source], pa.string())
    return pa.table(columns)


def _join(*parts: Any) -> Strings:
    text = parts[0].astype(object)
    for part in parts[1:]:
        text = text + " " + part
    return np.asarray(text, object)


def _swap_letters(text: str, at: float) -> str:
    i = int(at * (len(text) - 1))
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
