"""What a guest image is made of; packages.lock holds the exact versions.

Choices and measurements behind them: guest-image.md sections 1 and 5.
"""

from __future__ import annotations

# The version of the guest interface that the image serves, in dstack's numbering: clients and the VMM
# compare it.  vmm.md section 7 and the map's details ask for 0.5.4 or later.
VERSION = "0.5.11"

MIRROR = "http://deb.debian.org/debian"
SECURITY_MIRROR = "http://deb.debian.org/debian-security"
SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Of the root file system; what they depend on comes with them.
ROOT_PACKAGES = (
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "ca-certificates",
    "cryptsetup-bin",
    "dash",
    "e2fsprogs",
    "gunicorn",
    "kmod",
    "libc-bin",
    "media-types",
    "netbase",
    "python3-cryptography",
    "python3-flask",
    "python3-minimal",
    # The container engine.
    "aardvark-dns",
    "conmon",
    "crun",
    "docker-compose",
    "netavark",
    "nftables",
    "podman",
    # What runs (guest/runner.py) need: the programs that a job's shell is promised, the init of a job's container,
    # and the SSH server that only a measured app-compose starts.
    "catatonit",
    "coreutils",
    "openssh-server",
    "openssh-sftp-server",
)

# Depended upon for maintainer scripts or uses that a guest without logins and package manager never has.
EXCLUDED_PACKAGES = frozenset({
    "adduser",
    "debconf",
    "debianutils",
    "dirmngr",
    "dpkg",
    "gcc-14-base",
    "gnupg",
    "gnupg-l10n",
    "gpg",
    "gpg-agent",
    "gpgconf",
    "gpgsm",
    "init-system-helpers",
    "libapparmor1",
    "libcbor0.10",
    "libdebconfclient0",
    "libfido2-1",
    "libksba8",
    "libldap2",
    "libnpth0t64",
    "libpam-modules",
    "libpam-modules-bin",
    "libpam-runtime",
    "libproc2-0",
    "libsasl2-2",
    "libsasl2-modules-db",
    "libsmartcols1",
    "libsystemd-shared",
    "libtext-charwidth-perl",
    "libtext-wrapi18n-perl",
    "login.defs",
    "logsave",
    "lsb-base",
    "mawk",
    "mount",
    "openssh-client",
    "openssl",
    "openssl-provider-legacy",
    "passwd",
    "perl-base",
    "pinentry-curses",
    "procps",
    "runit-helper",
    "sensible-utils",
    "systemd",
    "sysvinit-utils",
    "tar",
    "tzdata",
    "ucf",
})  # fmt: skip

# Named by the kernel's meta package, whose dependency is the versioned image.
KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
# Of the initramfs, beside busybox and the libraries that the root file system has as well.
BOOT_PACKAGES = ("dmsetup",)
FIRMWARE_PACKAGES = ("ovmf",)
# Run on the building host through their own loader, so that its release does not show in the image.
TOOL_PACKAGES = ("erofs-utils",)

# Wheels of the guest's Python that Debian lacks or has in another major version.
WHEELS = (
    "cbor2>=6,<7",
    "coincurve==21.0.0",
    "marshmallow>=4.4,<5",
    "msgpack>=1.2,<2",
    "pycryptodome>=3.20",
)
PYTHON = "3.13"
WHEEL_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")

# Our own packages that run in the guest (style.md section 3 keeps them free of any other).
GUEST_CODE = ("core", "guest", "attest", "attest_sim")

# Kernel modules of the root file system, by path below kernel/; what they depend on comes with them.
ROOT_MODULES = (
    "arch/x86/crypto/",
    "crypto/",
    "drivers/acpi/button",
    "drivers/block/loop",
    "drivers/block/virtio_blk",
    "drivers/char/hw_random/",
    "drivers/char/tpm/",
    "drivers/firmware/qemu_fw_cfg",
    "drivers/input/evdev",
    "drivers/md/dm-",
    "drivers/misc/pvpanic/",
    "drivers/net/dummy",
    "drivers/net/ipvlan/",
    "drivers/net/macvlan",
    "drivers/net/tun",
    "drivers/net/veth",
    "drivers/net/virtio_net",
    "drivers/net/vxlan/",
    "drivers/net/wireguard/",
    "drivers/virt/coco/",
    "drivers/virtio/",
    "fs/configfs/",
    "fs/efivarfs/",
    "fs/erofs/",
    "fs/fat/",
    "fs/fuse/",
    "fs/isofs/",
    "fs/nls/",
    "fs/overlayfs/",
    "fs/xfs/",
    "net/8021q/",
    "net/bridge/",
    "net/ipv4/",
    "net/ipv6/",
    "net/netfilter/",
    "net/sched/",
    "net/tls/",
    "net/vmw_vsock/",
    "net/xfrm/",
)

# Kernel modules of the initramfs, by name, in the order in which they are wanted.
BOOT_MODULES = ("virtio_blk", "dm_verity", "erofs", "overlay")
# Loaded by stage 1 only on processors with the instructions.
CONDITIONAL_BOOT_MODULES = ("sha256_ssse3",)

# Files of packages that nobody reads in a guest.  Copyright files stay: they must go with the programs.
PRUNED = (
    "etc/cron.d",
    "etc/cron.daily",
    "etc/default",
    "etc/dpkg",
    "etc/init.d",
    "etc/logrotate.d",
    "etc/python3.13/sitecustomize.py",
    "etc/skel",
    "etc/sv",
    "etc/systemd",
    "etc/update-motd.d",
    "usr/lib/cryptsetup",
    "usr/lib/init",
    "usr/lib/podman/netavark-dhcp-proxy-client",
    "usr/lib/python3.13/sitecustomize.py",
    "usr/lib/systemd",
    "usr/lib/tmpfiles.d",
    "usr/lib/udev",
    "usr/lib/valgrind",
    "usr/lib/x86_64-linux-gnu/libcrun.a",
    "usr/libexec/podman/podman-testing",
    "usr/libexec/podman/quadlet",
    "usr/libexec/podman/rootlessport",
    "usr/share/applications",
    "usr/share/bash-completion",
    "usr/share/binfmts",
    "usr/share/bug",
    "usr/share/doc-base",
    "usr/share/fish",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/pixmaps",
    "usr/share/terminfo",
    "usr/share/vim",
    "usr/share/zsh",
)

# busybox applets that would let somebody in; the rest get a link where no program has the name.
EXCLUDED_APPLETS = frozenset({
    "adduser", "addgroup", "chpasswd", "cttyhack", "deluser", "delgroup", "dpkg", "dpkg-deb", "ftpd", "getty",
    "httpd", "inetd", "init", "linuxrc", "login", "passwd", "rpm", "rpm2cpio", "run-init", "su", "sulogin",
    "tcpsvd", "telnetd", "udhcpd", "udpsvd", "vlock",
})  # fmt: skip
