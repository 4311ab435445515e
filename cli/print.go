package cli

import (
	"strings"
)

// separator is a --- that ends as the lines of text do.
func separator(text string) string {
	if strings.Contains(text, "\r\n") {
		return "---\r\n"
	}
	return "---\n"
}

// after is the text of a file with the injection of its documents. Separated says that every document needs its own ---, JSON too.
func (f *file) after(separated bool) string {
	var b strings.Builder
	held := false // what is written so far holds a value since the last ---
	for i, d := range f.documents {
		if separated && held && !d.IsBlank() && !d.IsMarked() && f.documents[i-1].IsJSON() {
			endLine(&b)
			b.WriteString(separator(f.text))
		}
		b.WriteString(d.patched)
		for _, more := range d.more {
			endLine(&b)
			if separated || !d.IsJSON() {
				b.WriteString(separator(f.text))
			}
			b.WriteString(more)
		}
		held = !d.IsBlank()
	}
	return b.String()
}

// joined is the text of all files, one after the other. Where JSON comes first and YAML later, it starts with ---: kubectl takes what starts with a
// brace for JSON to its end.
func joined(files []*file) string {
	separated := !allJSON(files)
	var b strings.Builder
	marked := false
	if first := firstDocument(files); separated && first != nil && first.IsJSON() && !first.IsMarked() {
		b.WriteString(separator(first.Text()))
		marked = true
	}
	for i, f := range files {
		text := f.after(separated)
		if (i > 0 || marked) && text != "" {
			text = strings.TrimPrefix(text, "\uFEFF")
			endLine(&b)
			if b.Len() > 0 && separated && !strings.HasPrefix(text, "---") && !strings.HasSuffix(b.String(), "---\n") {
				b.WriteString(separator(f.text))
			}
		}
		b.WriteString(text)
	}
	return b.String()
}

// firstDocument is the first one that holds a value; nil where there is none.
func firstDocument(files []*file) *document {
	for _, f := range files {
		for _, d := range f.documents {
			if !d.IsBlank() {
				return d
			}
		}
	}
	return nil
}

// allJSON reports whether the output is a stream of JSON values, which needs no --- between them.
func allJSON(files []*file) bool {
	for _, f := range files {
		for _, d := range f.documents {
			if !d.IsBlank() && (!d.IsJSON() || d.IsMarked()) {
				return false
			}
		}
	}
	return true
}

// endLine ends the line that was not ended yet.
func endLine(b *strings.Builder) {
	if text := b.String(); text != "" && !strings.HasSuffix(text, "\n") {
		b.WriteByte('\n')
	}
}
