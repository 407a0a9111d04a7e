"""A QEMU guest with a kernel of its own: its commands, and the faults of its power, network and shared disk.

No KVM and no root: the guests compute in software, and their network is a wire of two UDP ports of this machine's
loopback, with no way in or out. The kernel ends a guest when the process that started it dies, however that happens.
"""

import base64
import json
import select
import socket
import subprocess
import time

PORTS = 2
BOOT_SECONDS = 120


class GuestError(Exception):
    """Something that the lab itself can't do; not a finding about the program under test."""


class Ended:
    """How a script ended in a guest: `code`, `out`, `err`, and how long it took."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    def __str__(self):
        return f"exit {self.code} after {self.seconds:.0f} s: {(self.out + self.err).strip()[-2000:]}"


class Job:
    """A script that runs in a guest."""

    def __init__(self, guest, port, script):
        self.guest, self.port, self.began, self.text = guest, port, time.monotonic(), b""
        guest.ports[port].sendall(base64.b64encode(script.encode()) + b"\n")

    def poll(self, seconds=0):
        """How it ended; None while it runs. Waits for that up to a time."""
        end = time.monotonic() + seconds
        stream = self.guest.ports[self.port]
        while not self.text.endswith(b"\n"):
            if not select.select([stream], [], [], max(0, end - time.monotonic()))[0]:
                return None
            got = stream.recv(1 << 16)
            if not got:
                raise GuestError(f"{self.guest.name} died")
            self.text += got
        code, out, err = self.text.decode()[:-1].split(" ")
        out, err = (base64.b64decode(text).decode(errors="replace") for text in (out, err))
        return Ended(int(code), out, err, time.monotonic() - self.began)

    def wait(self, seconds):
        """How it ended."""
        ended = self.poll(seconds)
        if not ended:
            raise GuestError(f"a script on {self.guest.name} has not ended within {seconds} s")
        return ended


class Guest:
    """One guest. Its disk, /data, outlives its power; the shared disk is /dev/lun."""

    def __init__(self, name, number, directory, kernel, initramfs, lun, wire):
        self.name, self.number, self.directory = name, number, directory
        self.address = f"10.77.0.{number}"
        self.process = None
        self.kernel, self.initramfs, self.lun, self.wire = kernel, initramfs, lun, wire
        disk = directory / f"{name}.disk"
        subprocess.run(["truncate", "-s", "8G", disk], check=True)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", disk], check=True)

    def power_on(self):
        """Boots; returns at once. `wait_booted` waits."""
        ours, theirs = zip(*(socket.socketpair() for _ in range(PORTS + 1)))
        self.control, *self.ports = ours
        self.control_lines = self.control.makefile("rw")
        argv = ["setpriv", "--pdeathsig", "KILL", *self._qemu([end.fileno() for end in theirs])]
        with open(self.directory / f"{self.name}.qemu.log", "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[end.fileno() for end in theirs], start_new_session=True)
        for end in theirs:
            end.close()
        self.control.settimeout(30)
        self.control_lines.readline()
        self.tell("qmp_capabilities")

    def wait_booted(self):
        """Waits until the guest answers and sees the shared disk."""
        ended = self.run("test -b /dev/lun && grep -q ' /data ' /proc/mounts", BOOT_SECONDS)
        if ended.code:
            raise GuestError(f"{self.name} has no disks: {ended}")

    def power_off(self):
        """Takes the power away: what the guest had not written yet is lost."""
        if self.process:
            self.process.kill()
            self.process.wait()
            for stream in (self.control, *self.ports):
                stream.close()
            self.process = None

    def start(self, script, port=1):
        """Starts a script; one at a time on each port."""
        return Job(self, port, script)

    def run(self, script, seconds=60):
        """Runs a script to its end."""
        return self.start(script, port=0).wait(seconds)

    def check(self, script, seconds=60):
        """Runs a script that has to succeed, and returns its output."""
        ended = self.run(script, seconds)
        if ended.code:
            raise GuestError(f"{self.name}: {script}: {ended}")
        return ended.out

    def pause(self):
        """Stops its processors."""
        self.tell("stop")

    def resume(self):
        """Lets them go on."""
        self.tell("cont")

    def network(self, connected):
        """Pulls the network cable out here, or puts it back. The other guest keeps its carrier and hears nothing."""
        self.tell("set_link", name="nic", up=connected)

    def disk_fails(self):
        """Lets each request to the shared disk fail with EIO."""
        self._put_under_disk("lun-broken")

    def disk_stalls(self):
        """Lets requests to the shared disk hang: no error, no end."""
        self._limit_disk(1)

    def disk_is_pulled(self):
        """Takes the shared disk out."""
        self.tell("device_del", id="lun-disk")
        for _ in range(100):
            if not self._disk():
                return
            time.sleep(0.1)
        raise GuestError(f"{self.name} does not let go of its shared disk")

    def disk_returns(self):
        """Ends whatever fault the shared disk has."""
        if self._disk():
            self._put_under_disk("lun")
            self._limit_disk(0)
        else:
            self.tell("device_add", **self._disk_device())
        self.check("find-lun")

    def tell(self, command, **arguments):
        """Gives QEMU a command and returns what it answers."""
        self.control_lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.control_lines.flush()
        while True:  # events come between
            answer = json.loads(self.control_lines.readline())
            if "error" in answer:
                raise GuestError(f"{self.name}: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def _disk(self):
        disks = (disk for disk in self.tell("query-block") if "lun-disk" in disk.get("qdev", "").split("/"))
        return next(disks, None)

    def _disk_device(self):
        return {"driver": "scsi-hd", "bus": "scsi.0", "id": "lun-disk", "drive": "lun", "share-rw": True,
                "serial": "BACKLANE-LAB"}

    def _put_under_disk(self, node):
        disk = self._disk()
        if disk["inserted"]["node-name"] != node:  # QEMU 7.2 aborts when a node takes its own place
            self.tell("qom-set", path=disk["qdev"], property="drive", value=node)

    def _limit_disk(self, bytes_per_second):
        """At one byte a second a request takes hours; zero is no limit."""
        others = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        self.tell("block_set_io_throttle", id=self._disk()["qdev"], bps=bytes_per_second, **others)

    def _qemu(self, streams):
        control, *ports = streams
        node = {"driver": "file", "node-name": "lun", "filename": str(self.lun), "cache": {"direct": True},
                "locking": "off"}
        fails = [{"event": "none", "iotype": kind, "errno": 5, "immediately": True}
                 for kind in ("read", "write", "write-zeroes", "discard", "flush")]
        broken = {"driver": "blkdebug", "node-name": "lun-broken", "image": "lun", "inject-error": fails}
        here, there = self.wire
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-name", self.name,
            "-accel", "tcg", "-cpu", "max", "-m", "1G", "-no-reboot",
            "-kernel", self.kernel, "-initrd", self.initramfs, "-append",
            f"console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 HOST={self.name} LAB_ADDRESS={self.address}",
            "-serial", f"file:{self.directory}/{self.name}.console.log",
            "-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control",
            "-netdev", "dgram,id=wire,local.type=inet,local.host=127.0.0.1,remote.type=inet,remote.host=127.0.0.1,"
            f"local.port={here},remote.port={there}",
            "-device", f"virtio-net-pci,id=nic,netdev=wire,romfile=,mac=52:54:00:4d:00:{self.number:02x}",
            "-drive", f"if=virtio,format=raw,file={self.directory}/{self.name}.disk",
            "-blockdev", json.dumps(node), "-blockdev", json.dumps(broken),
            "-device", "virtio-scsi-pci,id=scsi", "-device", json.dumps(self._disk_device()),
            "-device", "virtio-serial-pci",
        ]
        for number, stream in enumerate(ports, 1):
            argv += ["-chardev", f"socket,id=port{number},fd={stream}"]
            argv += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
        return argv
