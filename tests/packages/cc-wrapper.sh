#!@bash@
# A compiler that knows where its libc is, and whose programs find their interpreter and libraries in the store.
# shellcheck shell=bash disable=SC2239 # the placeholder is an interpreter's path
first=(-B@binutils@/bin/ -B@libc@/lib/) last=() links=1 headers=1 files=''
for argument; do
    case $argument in
        -c | -S | -E | -M | -MM | -fsyntax-only | -r | -nostdlib) links='' ;;
        -nostdinc) headers='' ;;
        -?*) ;;
        *) files=1 ;;
    esac
done
[ "${0##*/}" != cpp ] || links=''
[ -z "$headers" ] || last+=(-idirafter @libc@/include -idirafter @lib@/include)
if [ -n "$links" ] && [ -n "$files" ]; then
    last+=("-L@lib@/lib" "-L@libc@/lib" "-Wl,-rpath,@lib@/lib" "-Wl,-rpath,@libc@/lib" "-Wl,-dynamic-linker,@libc@/lib/@interpreter@")
fi
exec @program@ "${first[@]}" "$@" "${last[@]}"
