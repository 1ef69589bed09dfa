"""Run one class-incremental learning experiment; `python -m mnemonics` is the same.

    python main.py --dataset cifar100 --nb_phases 5          the paper's settings
    python main.py --dataset digits --nb_phases 5 --epochs 20 --network resnet8
    python main.py --help                                    every flag

    python main.py predict RUN IMAGE...                      what is on images, by a trained network
    python main.py export RUN DIR                            the exemplars of a run as PNG files
    torchrun --nproc_per_node=2 main.py ...                  on several GPUs

Exit status: 0 done, 1 the run failed, 2 the command line or the data must be changed, 143 or 130 stopped by SIGTERM or
Ctrl-C after a checkpoint was written. The same command continues a run that was interrupted in any way.
"""

import signal
import sys

# All is imported first, which takes seconds: until then Ctrl-C ends the process without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mnemonics.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
