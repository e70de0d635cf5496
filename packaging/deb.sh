#!/usr/bin/env bash
# deb.sh BINARY DIRECTORY: makes DIRECTORY/weir_VERSION_ARCHITECTURE.deb from a built binary, and prints its path.
#
# Man pages and completions come from the binary itself. DEB_COMPRESSION=none makes it quickly, for tests.
set -euo pipefail
binary=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

place() { install -D -m "$1" "$2" "$root/$3"; }

place 755 "$binary" usr/bin/weir
place 644 conf/weir.service usr/lib/systemd/system/weir.service
place 640 conf/weir.toml etc/weir/weir.toml
# Where the service has it, so that commands by hand find it, too.
sed -i 's|^# dir = "/var/lib/weir" |dir = "/var/lib/weir"   |' "$root/etc/weir/weir.toml"
place 644 LICENSE usr/share/doc/weir/copyright
for file in README.md CHANGELOG.md conf/collect.json conf/collect.schema.json; do
    place 644 "$file" "usr/share/doc/weir/$(basename "$file")"
done
for file in conf/examples/*; do
    place 644 "$file" "usr/share/doc/weir/examples/$(basename "$file")"
done
mkdir -p "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions"
"$root/usr/bin/weir" man "$root/usr/share/man/man1"
gzip -n9 "$root"/usr/share/man/man1/*
"$root/usr/bin/weir" completions bash >"$root/usr/share/bash-completion/completions/weir"
"$root/usr/bin/weir" completions zsh >"$root/usr/share/zsh/vendor-completions/_weir"

mkdir "$root/DEBIAN"
echo /etc/weir/weir.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "packaging/debian/$script" "$root/DEBIAN/$script"
done
# The libraries that it was linked with, by the names of their packages: both of Debian 12 and later ones.
cat >"$root/DEBIAN/control" <<END
Package: weir
Version: $version
Architecture: $architecture
Maintainer: The weir project <weir@localhost>
Section: admin
Priority: optional
Depends: adduser, ca-certificates, libc6, libssl3 | libssl3t64, libstdc++6
Description: follows log files and produces their lines to Kafka
 An agent that loses no line: offsets move only over what Kafka acknowledged.
 Lines pass through sandboxed WebAssembly filters where one is named. What to
 collect is a list in etcd or in a file, followed live.
END
(cd "$root" && find etc usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
deb=$out/weir_${version}_$architecture.deb
dpkg-deb --root-owner-group "-Z${DEB_COMPRESSION:-xz}" --build "$root" "$deb" >/dev/null
echo "$deb"
