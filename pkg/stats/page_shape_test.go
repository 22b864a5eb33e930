package stats

import (
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// TestPageShape checks that the tags are balanced and that each row of a table
// has as many cells as the others, those that span several counted so.
func TestPageShape(t *testing.T) {
	tokens := html.NewTokenizer(strings.NewReader(render(t, sample(), false)))
	var open []string
	var rows []int // cells of each row of the table
	tables := 0
	for {
		kind := tokens.Next()
		if kind == html.ErrorToken {
			break
		}
		token := tokens.Token()
		switch {
		case kind == html.StartTagToken && token.Data != "meta" && token.Data != "br":
			open = append(open, token.Data)
		case kind == html.EndTagToken:
			last := len(open) - 1
			if last < 0 || open[last] != token.Data {
				t.Fatalf("</%s> ends %v", token.Data, open)
			}
			open = open[:last]
		}
		if kind != html.StartTagToken && kind != html.EndTagToken {
			continue
		}
		switch {
		case kind == html.EndTagToken && token.Data == "table":
			tables++
			for i, n := range rows {
				if n != rows[0] {
					t.Errorf("row %d of table %d has %d cells, the first %d", i+1, tables, n, rows[0])
				}
			}
			rows = nil
		case kind == html.StartTagToken && token.Data == "tr":
			rows = append(rows, 0)
		case kind == html.StartTagToken && (token.Data == "td" || token.Data == "th"):
			span := 1
			for _, a := range token.Attr {
				if a.Key == "colspan" {
					span, _ = strconv.Atoi(a.Val)
				}
			}
			rows[len(rows)-1] += span
		}
	}
	if len(open) > 0 || tables < 6 {
		t.Errorf("%d tables; not ended: %v", tables, open)
	}
}
