package measure

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// ParseMetrics reads metrics in the text format of Prometheus, without timestamps. The keys of the
// result are metrics with their labels, as the text has them: NAME or NAME{LABEL="VALUE",...}.
func ParseMetrics(text io.Reader) (map[string]float64, error) {
	metrics := map[string]float64{}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("parse metric %s: %w", line[:at], err)
		}
		metrics[line[:at]] = value
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return metrics, nil
}
