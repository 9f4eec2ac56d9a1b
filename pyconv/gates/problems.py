"""The problems whose launches are compiled: one for each way that a kernel can specialise itself.

They are as large as those of real networks, so that the tile sizes meant for a GPU are chosen. Each is
without dtype and layout; a line of the table is asked for all that it takes. A kernel whose configuration has
a further case needs a problem here that leads to it.
"""

CONV2D = [
    "conv2d n32c64h56w56 k64r3s3 st1 pd1",  # the layer of VGG and ResNet
    "conv2d n32c128h56w56 k128r3s3 st2 pd1",  # ResNet: strided
    "conv2d n32c512h7w7 k512r3s3 st1 pd1",  # few pixels, many channels
    "conv2d n32c256h56w56 k64r1s1 st1 pd0",  # ResNet-50: pointwise
    "conv2d n32c256h56w56 k512r1s1 st2 pd0",
    "conv2d n32c3h224w224 k64r7s7 st2 pd3",  # stem of ResNet
    "conv2d n32c3h224w224 k64r11s11 st4 pd2",  # stem of AlexNet
    "conv2d n128c1h28w28 k6r5s5 st1 pd2",  # LeNet
    "conv2d n32c96h56w56 k96r3s3 st1 pd1 g96",  # MobileNet: depthwise
    "conv2d n32c96h56w56 k96r3s3 st2 pd1 g96",
    "conv2d n32c96h28w28 k96r5s5 st1 pd2 g96",
    "conv2d n32c96h28w28 k96r7s7 st1 pd3 g96",  # ConvNeXt
    "conv2d n32c128h28w28 k128r3s3 st1 pd1 g32",  # ResNeXt: grouped
    "conv2d n2c6h13w11 k9r3s5 st2x1 pd1,2,0,3 dl1x2 g3",  # nothing special about it, and nothing aligned
    "conv2d n2c9h13w11 k9r4s2 st1x3 pd2 dl2 g9",
    "conv2d n2c33h8w14 k33r3s3 st2 pd1 g33",
    "conv2d n2c5h13w11 k9r3s3 st1 pd1",
    "conv2d n2c0h5w5 k4r3s3 st1 pd1",  # empty sums
]

MAXPOOL2D = [
    "maxpool2d n32c64h112w112 r3s3 st2 pd1",  # ResNet
    "maxpool2d n32c64h56w56 r2s2 st2 pd0",  # VGG
    "maxpool2d n2c3h9w17 r2s2 st2 pd0",  # rows of an odd length
    "maxpool2d n32c64h55w55 r3s3 st2 pd0",  # AlexNet: no row a multiple of a vector
    "maxpool2d n32c256h28w28 r3s3 st1 pd1",  # GoogLeNet
    "maxpool2d n2c5h13w11 r3s2 st2x3 pd1x0 dl2x1 ceil",
    "maxpool2d n2c5h40w40 r17s17 st3 pd8",  # a window with more places than a byte can number
    "maxpool2d n32c512h7w7 r7s7 st7 pd0",  # the whole image
]

#: operation -> problems
PROBLEMS = {"conv2d": CONV2D, "maxpool2d": MAXPOOL2D}
