#!/bin/sh
# Makes the Debian packages, .venv and what is in it ready; quick when all is there.  Called by make.
#   setup.sh       what running needs
#   setup.sh dev   and what the tests need
set -eu
cd "$(dirname "$0")"

# A file that shows that a package is there, and the package.
needed="
/usr/bin/qemu-system-x86_64:qemu-system-x86
/usr/bin/qemu-img:qemu-utils
/usr/bin/mcopy:mtools
/usr/lib/python3.11/ensurepip/__init__.py:python3-venv
/etc/ssl/certs/ca-certificates.crt:ca-certificates
"
if [ "${1:-}" = dev ]; then
    needed="$needed
/usr/bin/curl:curl
/usr/bin/git:git
/usr/bin/chromium:chromium
/usr/bin/chromedriver:chromium-driver
/usr/sbin/nginx:nginx-light
/usr/bin/node:nodejs
/usr/bin/npm:npm
/usr/bin/passt:passt
/usr/sbin/cryptsetup:cryptsetup-bin
/usr/bin/swtpm:swtpm
/usr/sbin/haproxy:haproxy
/usr/bin/ssh:openssh-client
"
fi
# Debian 13 has another Python; its venv is in the same package.
[ -e /usr/lib/python3.13/ensurepip/__init__.py ] &&
    needed=$(printf '%s' "$needed" | sed 's/python3\.11/python3.13/')

missing=
for pair in $needed; do
    [ -e "${pair%%:*}" ] || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
    install="apt-get install -y --no-install-recommends$missing"
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif sudo -n true 2>/dev/null; then
        as_root=sudo
    else
        echo "These Debian packages are missing; install them and run make again:" >&2
        echo "    sudo $install" >&2
        exit 1
    fi
    echo "installing:$missing"
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
fi

lock=requirements.lock
[ "${1:-}" = dev ] && lock=requirements-dev.lock
[ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
mark=.venv/installed-$lock
# setup.cfg too: it names the packages that the installation shows to Python.
if ! cat "$lock" setup.cfg | cmp -s - "$mark"; then
    echo "installing the Python packages of $lock"
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
    cat "$lock" setup.cfg >"$mark"
fi

# The published registry of SecretVM builds, without which VMs of others are not recognised, and no more.
if [ ! -e .venv/share/casemate/registry/sev.json ] && ! .venv/bin/casemate artifacts fetch >/dev/null; then
    echo "going on without the published registry; later: .venv/bin/casemate artifacts fetch" >&2
fi
