#!/usr/bin/env bash
# archive.sh PACKAGE.deb: the same files as weir-VERSION-ARCHITECTURE.tar.gz beside it, for other systems.
set -euo pipefail
deb=$(realpath "$1")
name=$(basename "$deb" .deb | tr _ -)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
dpkg-deb --extract "$deb" "$root/deb"
mkdir -p "$root/$name/bin"
mv "$root/deb/usr/bin/weir" "$root/$name/bin/"
mv "$root/deb/usr/share/doc/weir" "$root/$name/doc"
mv "$root/deb/usr/share/man" "$root/deb/usr/share/bash-completion" "$root/deb/usr/share/zsh" "$root/$name/"
mv "$root/deb/etc/weir/weir.toml" "$root/deb/usr/lib/systemd/system/weir.service" "$root/$name/"
tar --create --gzip --owner=0 --group=0 --sort=name --directory "$root" --file "$(dirname "$deb")/$name.tar.gz" "$name"
