"""What the guests boot: Debian's cloud kernel, and an initramfs with busybox and the programs under test.

Both are fetched by apt and unpacked, never installed. Nothing here needs root. The initramfs is written by this module
itself, because it can then hold what no unprivileged user could put into a directory.
"""

import lzma
import os
import pathlib
import re
import subprocess

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "backlane-lab"
MODULES = "virtio_pci virtio_console virtio_net virtio_blk virtio_scsi sd_mod".split()

# The first process. LAB_ADDRESS and HOST come from the kernel's command line. What has to outlive the guest's power is
# on its own disk, /data.
INIT = r"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm /run /tmp /data /var/lib /root
for dir in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $dir; done
for module in /modules/*; do insmod $module; done
hostname $HOST
ip link set lo up; ip addr add $LAB_ADDRESS/24 dev eth0; ip link set eth0 up
mount -t ext4 /dev/vda /data
mkdir -p /data/etc /data/state
ln -s /data/etc /etc/backlane; ln -s /data/state /var/lib/backlane
find-lun
exec init
"""

# Serves one of the guest's two ports: scripts come in, each as a line of base64; a line with the exit status, standard
# output and standard error goes back.
AGENT = r"""#!/bin/busybox sh
export PATH=/bin HOME=/root
exec 3<>"$(echo /dev/vport*p$1)"
while read -r script <&3; do
    echo "$script" | base64 -d >/run/$1.sh
    sh /run/$1.sh >/run/$1.out 2>/run/$1.err </dev/null 3<&-
    echo "$? $(base64 -w0 /run/$1.out) $(base64 -w0 /run/$1.err)" >&3
done
"""

# The shared disk is the only SCSI disk, and comes back by another letter when it was pulled.
FIND_LUN = r"""#!/bin/busybox sh
for try in $(seq 50); do
    for disk in /sys/block/sd*; do [ -e $disk ] && ln -sfn ${disk##*/} /dev/lun && exit 0; done
    usleep 100000
done
exit 1
"""

INITTAB = "::respawn:/bin/agent 1\n::respawn:/bin/agent 2\n"


def build(programs, image):
    """Writes an initramfs with these programs (paths) to `image`; returns the kernel's path."""
    root = _unpacked()
    files = {
        "init": (INIT.encode(), 0o755),
        "bin/agent": (AGENT.encode(), 0o755),
        "bin/find-lun": (FIND_LUN.encode(), 0o755),
        "bin/busybox": ((root / "bin/busybox").read_bytes(), 0o755),
        "etc/inittab": (INITTAB.encode(), 0o644),
    }
    for number, (name, module) in enumerate(_modules(root)):
        files[f"modules/{number:02}-{name}.ko"] = (module, 0o644)
    for program in programs:
        # Without debug information, which is most of a debug build and would fill the guests' memory.
        stripped = image.parent / program.name
        subprocess.run(["strip", "-o", stripped, program], check=True)
        files[f"bin/{program.name}"] = (stripped.read_bytes(), 0o755)
        stripped.unlink()
        for library in _libraries(program):
            files[library.lstrip("/")] = (pathlib.Path(library).read_bytes(), 0o755)
    _write_cpio(files, image)
    return next(root.glob("boot/vmlinuz-*"))


def _unpacked():
    """The directory with the unpacked packages; fetched when it is not there yet."""
    root = CACHE / "root"
    if root.exists():
        return root
    debs, new = CACHE / "debs", CACHE / "root.new"
    subprocess.run(["rm", "-rf", debs, new], check=True)
    debs.mkdir(parents=True)
    depends = _output("apt-cache", "depends", "linux-image-cloud-amd64")
    kernel = re.search(r"Depends: (linux-image-\d\S+)", depends)
    if not kernel:
        raise RuntimeError("apt knows no linux-image-cloud-amd64: run apt-get update first (Debian on amd64)")
    fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", kernel.group(1), "busybox-static"]
    subprocess.run(fetch, check=True, cwd=debs)
    for deb in debs.iterdir():
        subprocess.run(["dpkg-deb", "-x", deb, new], check=True)
    subprocess.run(["rm", "-rf", debs], check=True)
    new.rename(root)
    return root


def _modules(root):
    """Name and content of each module that the guests need, each after those that it depends on."""
    paths = {path.name.split(".ko")[0].replace("-", "_"): path for path in root.glob("lib/modules/**/*.ko*")}
    found = {}

    def visit(name):
        if name in found or name not in paths:  # what has no file is built into the kernel
            return
        opener = lzma.open if paths[name].suffix == ".xz" else open
        with opener(paths[name], "rb") as file:
            content = file.read()
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in depends.group(1).decode().replace("-", "_").split(",") if depends else []:
            visit(other)
        found[name] = content

    for name in MODULES:
        visit(name)
    return found.items()


def _libraries(program):
    """The paths of the shared libraries that a program needs, its loader among them."""
    return re.findall(r"(/\S+) \(0x", _output("ldd", program))


def _output(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def _write_cpio(files, image):
    """Writes files (name: content, mode) and the directories above them in the form that the kernel unpacks (newc)."""
    above = {str(parent): None for name in files for parent in reversed(pathlib.PurePath(name).parents)}
    entries = [(name, b"", 0o040755) for name in [*above, "proc", "sys", "dev"] if name != "."]
    entries += [(name, content, 0o100000 | mode) for name, (content, mode) in files.items()]
    entries.append(("TRAILER!!!", b"", 0))
    with open(image, "wb") as out:
        for inode, (name, content, mode) in enumerate(entries, 1):
            # Inode, mode, user, group, links, time, size, the file's device (2), a node's device (2), length of the
            # name, checksum.
            numbers = [inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
            head = b"070701" + "".join(f"{number:08X}" for number in numbers).encode() + name.encode() + b"\0"
            out.write(head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4))
