#!/bin/bash
# install-dom0.sh: brings qvm-remote-dom0 out of a qube into dom0, authorises that qube, and starts the service until
# the next boot. Run it in dom0:
#
#   bash install-dom0.sh [--yes] --sha256 HASH VM [PATH]     the program in VM (PATH: /usr/bin/qvm-remote-dom0)
#   bash install-dom0.sh [--yes] --signature KEYRING VM [PATH]   checked with PATH.sig and a keyring of dom0's
#
# What comes out of a qube is whatever that qube says. So it is read as bytes, never more than 64 MiB, into a directory
# that only root can enter, and installed only when it is what you expected: its SHA-256 as you typed it, from where
# you built or downloaded it and not from that qube, or signed by a key that is in dom0 already.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077

die() { echo "install-dom0.sh: $*" >&2; exit 1; }
yes='' hash='' keyring=''
while (($#)); do
  case $1 in
    --yes) yes=1 ;;
    --sha256) hash=${2-}; shift ;;
    --signature) keyring=${2-}; shift ;;
    -*) die "unknown option: $1" ;;
    *) break ;;
  esac
  shift
done
(($# == 1 || $# == 2)) || die "usage: install-dom0.sh [--yes] --sha256 HASH VM [PATH]"
vm=$1 path=${2-/usr/bin/qvm-remote-dom0}
[[ $vm =~ ^[A-Za-z][A-Za-z0-9_-]{0,30}$ ]] || die "'$vm' cannot be a qube's name"
[[ $path =~ ^/[A-Za-z0-9._/-]+$ ]] || die "the path may hold letters, digits and . _ - / only"
[[ $(id -u) == 0 ]] || die "must run as root"
[[ $(hostname) == dom0 ]] || die "this is not dom0"
if [[ -n $hash ]]; then
  [[ $hash =~ ^[0-9a-f]{64}$ ]] || die "a SHA-256 has 64 hexadecimal digits"
elif [[ -n $keyring ]]; then
  [[ -f $keyring ]] || die "$keyring: no such keyring"
else
  die "nothing is installed unseen: --sha256 HASH, or --signature KEYRING"
fi
qvm-check -q "$vm" >/dev/null 2>&1 || die "VM '$vm' does not exist"

cat >&2 <<'WARNING'
WARNING: this lets a qube run commands in dom0 with root privileges.
It breaks the security model of Qubes OS by design. Use it only on a machine that you fully control.
WARNING
if [[ -z $yes ]]; then
  [[ -t 0 ]] || die "no terminal to ask on; without one use --yes"
  read -rp "Type 'yes' to install: " answer
  [[ $answer == yes ]] || { echo "Aborted."; exit 1; }
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
pull() { # PATH FILE LIMIT WHY-NOT
  qvm-run --pass-io --no-gui --no-autostart "$vm" "head -c $3 '$1'" </dev/null | head -c "$3" >"$2" || true # what came is judged, not how it came
  [[ -s $2 ]] || die "$1 could not be read in $vm (${4-is it running?})"
}
pull "$path" "$tmp/qvm-remote-dom0" 67108864
if [[ -n $hash ]]; then
  echo "$hash  $tmp/qvm-remote-dom0" | sha256sum --quiet --check - >&2 || die "it is not the program that you named: nothing was installed"
else
  pull "$path.sig" "$tmp/sig" 65536
  gpgv --keyring "$keyring" "$tmp/sig" "$tmp/qvm-remote-dom0" >&2 || die "its signature is not good: nothing was installed"
fi
# the key, before anything is changed; the program just checked reads it
pull /home/user/.qvm-remote/auth.key "$tmp/key" 128 "it has no key; there: qvm-remote key gen"
key=$(tr -d '\n' <"$tmp/key" | tr 'A-F' 'a-f')
[[ $key =~ ^[0-9a-f]{64}$ ]] || die "the qube has no key: there, qvm-remote key gen"

install -m 755 "$tmp/qvm-remote-dom0" /usr/bin/.qvm-remote-dom0.new
mv -f /usr/bin/.qvm-remote-dom0.new /usr/bin/qvm-remote-dom0
# the units come out of the program that was checked, not out of the qube
/usr/bin/qvm-remote-dom0 unit >"$tmp/unit"
/usr/bin/qvm-remote-dom0 unit --commands >"$tmp/commands"
install -D -m 644 "$tmp/unit" /etc/systemd/system/qvm-remote-dom0.service
install -D -m 644 "$tmp/commands" /etc/systemd/system/qvm-remote-dom0-commands.service
mkdir -p /etc/qubes
[[ -e /etc/qubes/remote.conf ]] || { echo "QVM_REMOTE_VMS=\"$vm\"" >/etc/qubes/remote.conf; chmod 600 /etc/qubes/remote.conf; }
grep -qE "^[^#]*VMS?[[:space:]]*=([^#]*[^A-Za-z0-9_-])?$vm([^A-Za-z0-9_-]|\$)" /etc/qubes/remote.conf || echo "install-dom0.sh: add $vm to QVM_REMOTE_VMS in /etc/qubes/remote.conf" >&2
printf '%s\n' "$key" | /usr/bin/qvm-remote-dom0 authorize "$vm"
systemctl daemon-reload
if [[ $(systemctl show --property=ActiveState --value qvm-remote-dom0) =~ ^(active|activating|reloading)$ ]]; then
  # it runs the program of before
  /usr/bin/qvm-remote-dom0 restart --when-idle || systemctl --no-block try-restart qvm-remote-dom0
else
  systemctl start qvm-remote-dom0
fi
echo "Installed. In $vm: qvm-remote ping. At every boot: qvm-remote-dom0 enable"
