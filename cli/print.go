package cli

import (
	"cmp"
	"strings"
)

// separator returns a line --- with the line ending of text.
func separator(text string) string {
	if strings.Contains(text, "\r\n") {
		return "---\r\n"
	}
	return "---\n"
}

// after returns the text of a file after injection. If separated, JSON documents need a --- between
// them, as YAML documents do.
func (f *file) after(separated bool) string {
	var b strings.Builder
	afterValue := false // whether there is a value after the last ---
	for i, d := range f.documents {
		if separated && afterValue && !d.IsBlank() && !d.IsMarked() && f.documents[i-1].IsJSON() {
			endLine(&b)
			b.WriteString(separator(f.text))
		}
		b.WriteString(cmp.Or(d.patched, d.Text()))
		for _, more := range d.more {
			endLine(&b)
			if separated || !d.IsJSON() {
				b.WriteString(separator(f.text))
			}
			b.WriteString(more)
		}
		afterValue = !d.IsBlank()
	}
	return b.String()
}

// joined returns the texts of all files, one after the other. If JSON comes first and YAML later,
// the output starts with ---: kubectl parses an input that starts with a brace as JSON to its end.
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

// firstDocument returns the first document with a value; nil for none.
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

// endLine adds a newline if the text does not end with one.
func endLine(b *strings.Builder) {
	if text := b.String(); text != "" && !strings.HasSuffix(text, "\n") {
		b.WriteByte('\n')
	}
}
