import os
import signal
import subprocess
import sys

import pytest

from profiles.errors import EnvironmentFault
from trainer.supervisor.run_lock import holding


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    refusal = pytest.raises(EnvironmentFault, match=f"another process is training in {tmp_path}")
    with holding(tmp_path), refusal, holding(tmp_path):
        pass
    with holding(tmp_path):
        pass


def test_a_process_that_is_killed_gives_the_folder_back(tmp_path):
    code = "import sys, time; from pathlib import Path; from trainer.supervisor.run_lock import holding\n"
    code += f"with holding(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentFault), holding(tmp_path):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with holding(tmp_path):
        pass
