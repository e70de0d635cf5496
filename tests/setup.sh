#!/usr/bin/env bash
# Installs what is missing to build weir (`build`), to lint it (`lint`), to test it (`test`), to test it
# under valgrind (`memcheck`), to see its page in a browser (`page`), to measure it beside others (`bench`), to
# build filters in other languages (`languages`) or to package it (`dist`). Where nothing is missing it does nothing and says nothing.
#
# Debian packages are installed as root, or with a sudo that asks for no password. Where neither can be
# had, the command to run is printed. Debian's etcd-server would start an etcd on port 2379, now and at
# each boot; the tests start their own, so it is kept from that, and so is rsyslog.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

# Any of these includes will do; protoc looks for them beside itself.
have_protobuf_includes() {
    [ -e "$(dirname "$(dirname "$(command -v protoc)")")/include/google/protobuf/descriptor.proto" ] ||
        [ -e /usr/include/google/protobuf/descriptor.proto ]
}

# Kafka 4 needs Java 17.
have_java() {
    have java && [ "$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')" -ge 17 ]
}

packages_to_build() {
    have cc || echo gcc
    have c++ || echo g++
    have make || echo make
    have pkg-config || echo pkg-config
    { have pkg-config && pkg-config --exists openssl; } || echo libssl-dev
    have protoc || echo protobuf-compiler
    { have protoc && have_protobuf_includes; } || echo libprotobuf-dev
}

packages_to_test() {
    have etcd || echo etcd-server
    have etcdctl || echo etcd-client
    have kcat || echo kcat
    have valgrind || echo valgrind
    have_java || echo JAVA
    # Maven only fetches Kafka's jars.
    [ -n "${WEIR_KAFKA_LIB:-}" ] || [ target/kafka/lib -nt tests/kafka/pom.xml ] || have mvn || echo maven
}

packages_to_bench() {
    have lz4 || echo lz4
    [ -x /usr/sbin/rsyslogd ] || echo rsyslog
    compgen -G '/usr/lib/*/rsyslog/omkafka.so' >/dev/null || echo rsyslog-kafka
}

# Go, Node.js and Python are left to their own installers: Debian's may be too old.
packages_for_languages() {
    have clang || echo clang
    have wasm-ld || echo lld
}

# The newest Java that this release has.
java_package() {
    for version in 25 21 17; do
        if apt-cache policy "openjdk-$version-jre-headless" | grep -q 'Candidate: [0-9]'; then
            echo "openjdk-$version-jre-headless"
            return
        fi
    done
    echo default-jre-headless
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# While this file is there and says 101, Debian starts no service that it installs.
without_services() {
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    local code=0
    "$@" || code=$?
    as_root rm -f "$policy"
    return "$code"
}

install() {
    local packages=("$@")
    if ! have apt-get; then
        echo "weir needs what Debian has in these packages: ${packages[*]/JAVA/a Java 17 runtime}" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ] && ! { have sudo && sudo -n true 2>/dev/null; }; then
        echo "Some packages are missing. Run this, then try again:" >&2
        echo "  sudo apt-get install --no-install-recommends ${packages[*]/JAVA/$(java_package)}" >&2
        exit 1
    fi
    echo "installing ${packages[*]/JAVA/a Java runtime}"
    as_root apt-get update -qq
    packages=("${packages[@]/JAVA/$(java_package)}")
    without_services as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq --no-install-recommends "${packages[@]}" >/dev/null
    if [[ " ${packages[*]} " = *" etcd-server "* ]] && have systemctl; then
        as_root systemctl disable --quiet etcd.service 2>/dev/null || true
    fi
    if [[ " ${packages[*]} " = *" rsyslog "* ]] && have systemctl; then
        as_root systemctl disable --quiet rsyslog.service 2>/dev/null || true
    fi
}

wasm_target() {
    local target=wasm32-unknown-unknown
    [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || return 0
    if ! have rustup; then
        echo "Rust's $target target is missing, and so is rustup, which would add it: https://rustup.rs" >&2
        exit 1
    fi
    rustup target add "$target"
}

cd "$(dirname "$0")/.."
if ! have cargo; then
    echo "Rust is missing: install it from https://rustup.rs, then try again." >&2
    exit 1
fi
case "${1:-}" in
    build | lint) mapfile -t missing < <(packages_to_build) ;;
    test) mapfile -t missing < <(packages_to_build; packages_to_test) ;;
    page) mapfile -t missing < <(packages_to_build; have chromium || echo chromium) ;;
    memcheck) mapfile -t missing < <(packages_to_build; have valgrind || echo valgrind) ;;
    bench) mapfile -t missing < <(packages_to_build; packages_to_test; packages_to_bench) ;;
    dist) mapfile -t missing < <(packages_to_build; have jq || echo jq; have dpkg-deb || echo dpkg) ;;
    languages) mapfile -t missing < <(packages_to_build; packages_for_languages) ;;
    *) echo "usage: $0 build|lint|test|page|memcheck|bench|languages|dist" >&2; exit 2 ;;
esac
[ ${#missing[@]} = 0 ] || install "${missing[@]}"
wasm_target
if [ "$1" = lint ] && ! { cargo clippy --version && cargo fmt --version; } >/dev/null 2>&1; then
    rustup component add clippy rustfmt
fi
