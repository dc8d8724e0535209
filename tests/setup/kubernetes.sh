#!/usr/bin/env bash
# kubernetes.sh: compiles a Kubernetes API server and downloads etcd. Prints the directory that contains bin/kube-apiserver and bin/etcd.
#
# The version is 1.20, the newest whose source Debian has (the binary package contains only kubectl). It is compiled with bookworm's Go
# compiler, which takes some minutes on two processors, and 3 GB meanwhile. Installs nothing on this machine.
. "$(dirname "$0")/lib.sh"

apt_install debian-archive-keyring
mirror=${TEST_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Downloads the packages with separate sources and lists of apt, so that those of the machine stay unchanged.
fetch() {
  mkdir -p lists/partial archives/partial packages
  printf 'deb [signed-by=%s] %s bookworm main\ndeb-src [signed-by=%s] %s bookworm main\n' "$keyring" "$mirror" "$keyring" "$mirror" >sources.list
  local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$PWD/lists"
    -o "Dir::Cache::archives=$PWD/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
  "${apt[@]}" update
  "${apt[@]}" download golang-1.19-go golang-1.19-src etcd-server
  "${apt[@]}" source --download-only kubernetes
  for package in *.deb; do dpkg-deb -x "$package" packages; done
}

# Joins the compiler's two packages, which refer to each other by links to their usual paths.
compiler() {
  find packages/usr/lib/go-1.19 packages/usr/share/go-1.19 -type l -delete
  mkdir go
  cp -a packages/usr/share/go-1.19/. packages/usr/lib/go-1.19/. go/
}

install() {
  local work=$PWD kubernetes=k8s.io/kubernetes vendor=k8s.io/kubernetes/vendor version
  fetch
  compiler
  mkdir -p "path/src/$kubernetes" bin
  tar -xzf kubernetes_*.orig.tar.gz --strip-components 1 -C "path/src/$kubernetes"
  # The package's version is 1.20.5+really1.20.2.
  version=$(basename kubernetes_*.orig.tar.gz .orig.tar.gz | sed 's/.*[_y]//')
  export GOROOT=$work/go GOPATH=$work/path GOCACHE=$work/compiled GO111MODULE=off CGO_ENABLED=0 GOFLAGS='' PATH=$work/go/bin:$PATH
  cd "path/src/$kubernetes"

  # One source file is generated: the description of its types. The packages are those that its Makefile finds.
  go build -o "$work/openapi-gen" "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"
  local types
  types=$(grep -rlE '\+k8s:openapi-gen=true' --include='*.go' pkg staging/src/k8s.io | grep -v _test.go | xargs -n1 dirname | sort -u |
    grep -vE 'code-generator|sample-apiserver' | sed -e "s#^staging/src/#$vendor/#" -e "s#^pkg#$kubernetes/pkg#" | paste -sd,)
  "$work/openapi-gen" --output-file-base zz_generated.openapi --go-header-file hack/boilerplate/boilerplate.generatego.txt \
    --input-dirs "$types" --output-package "$kubernetes/pkg/generated/openapi" --output-base "$GOPATH/src" --report-filename /dev/null

  local linked='' package
  for package in "$vendor/k8s.io/component-base/version" "$vendor/k8s.io/client-go/pkg/version"; do
    linked+=" -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
  done
  nice go build -ldflags "-s -w$linked" -o "$work/bin/kube-apiserver" ./cmd/kube-apiserver

  cd "$work"
  mv packages/usr/bin/etcd bin/
  find . -mindepth 1 -maxdepth 1 ! -name bin -exec rm -rf {} +
  bin/kube-apiserver --version
  bin/etcd --version
}
tree kubernetes-1 install
