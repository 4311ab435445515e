package page

import "os"

// Wrap is wrap.
var Wrap = wrap

// Wide returns a page of that width.
func Wide(to *os.File, width int) *Page { return &Page{to: to, width: width, lost: func() {}} }
