// Package attacks has inputs that are small, but may take much memory or time to process. Tests,
// fuzz targets and benchmarks send them.
package attacks

import (
	"fmt"
	"math"
	"runtime/metrics"
	"strings"
)

// Secrets are values of the annotation keyvault.io/secrets of at most 256 KiB, by the feature that
// they abuse.
var Secrets = map[string]string{
	"tags behind a directive":       "- objectName: a\n...\n%TAG !x! " + strings.Repeat("t", 60_000) + "\n---\n" + strings.Repeat("- !x!a\n", 24_000),
	"a directive of the document":   "%TAG !x! " + strings.Repeat("t", 60_000) + "\n---\n" + strings.Repeat("- !x!a\n", 24_000),
	"aliases of a long text":        "- objectName: a\n  objectAlias: &s \"" + strings.Repeat("s", 120_000) + "\"\n  containers: [" + strings.Repeat("*s,", 32_000) + "]",
	"aliases of aliases":            "- &a [x,x,x,x,x,x,x,x]\n- &b [*a,*a,*a,*a,*a,*a,*a,*a]\n- &c [*b,*b,*b,*b,*b,*b,*b,*b]\n- &d [*c,*c,*c,*c,*c,*c,*c,*c]\n- [*d,*d,*d,*d,*d,*d,*d,*d]",
	"as many nodes as there can be": "[" + strings.Repeat("a,", 120_000) + "]",
	"mappings in a list":            "[" + strings.Repeat("{},", 80_000) + "]",
	"lists in lists":                strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000),
	"lists in lists, as a block":    strings.Repeat("- ", 100_000),
	"one key many times":            "- {" + strings.Repeat("a: b,", 40_000) + "}",
	"explicit keys":                 "[" + strings.Repeat("? ,", 80_000) + "]",
	"anchors":                       "- objectName: a\n" + numbered("- &a%d b\n", 20_000),
	"items":                         strings.Repeat("a,", 120_000),
	"containers of an item":         "- {objectName: a, containers: [" + strings.Repeat("c,", 120_000) + "]}",
	"globs of each item":            numbered("- {objectName: a%[1]d, containers: ["+strings.Repeat("'*a*b*c*d*e',", 99)+"x]}\n", 100),
	"a scalar over many lines":      "- objectName: \"" + strings.Repeat("a\n\n", 80_000) + "\"",
	"comments":                      "- a\n" + strings.Repeat("# b\n", 60_000),
}

// Objects are values of the parameter "objects" of a SecretProviderClass. etcd stores objects of up
// to 1.5 MiB.
var Objects = map[string]string{
	"as many nodes as there can be": "array: [" + strings.Repeat("a,", 690_000) + "]",
	"tags behind a directive":       "array: [a]\n...\n%TAG !x! " + strings.Repeat("t", 60_000) + "\n---\n" + strings.Repeat("- !x!a\n", 150_000),
	"an object many times":          "x: &x |\n  objectName: a\n  #" + strings.Repeat("…", 100_000) + "\narray: [" + strings.Repeat("*x,", 900) + "]",
	"nodes in an object":            "array:\n- \"[" + strings.Repeat("a,", 200_000) + "]\"",
	"lists in lists":                "array: " + strings.Repeat("[", 500_000),
	"keys":                          numbered("k%d: x\n", 100_000),
}

// numbered formats each number below n, and joins the results.
func numbered(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// Allocated returns how many bytes of memory f allocates, including those that it frees. It runs f
// until a run stays within limit, at most three times, and returns the least, since other
// goroutines of a test allocate as well.
func Allocated(limit int, f func()) int {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	least := uint64(math.MaxInt)
	for range 3 {
		metrics.Read(sample)
		before := sample[0].Value.Uint64()
		f()
		metrics.Read(sample)
		if least = min(least, sample[0].Value.Uint64()-before); least <= uint64(limit) { //nolint:gosec // neither is negative
			break
		}
	}
	return int(least)
}

// Factor is how many bytes may be allocated for each byte of a text that a tenant wrote, and Free
// is how many more bytes may be allocated. The YAML library allocates a kilobyte for a node, whose
// text may have two bytes.
const (
	Factor = 1000
	Free   = 256 << 10
)
