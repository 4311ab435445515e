package api_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string]api.Versions{
		"":                                     {},
		"kv/secret/a@1":                        {"kv/secret/a": "1"},
		"kv/cert/b@2,kv/secret/a@1":            {"kv/cert/b": "2", "kv/secret/a": "1"},
		"nonsense,@1,kv/secret/a@,kv/key/c@@3": {"kv/key/c": "@3"},
	} {
		got := api.ParseVersions(text)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q differs (-want +got):\n%s", text, diff)
		}
		if again := api.ParseVersions(got.String()); !cmp.Equal(got, again) {
			t.Errorf("%q is printed as %q", text, got)
		}
	}
}

func TestWindow(t *testing.T) {
	// 2 January 2006 was a Monday.
	at := func(text string) int {
		parsed, err := time.Parse("02 15:04 -0700", text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = parsed.AddDate(2006, 0, 0).UTC()
		return int(parsed.Weekday())*24*60 + parsed.Hour()*60 + parsed.Minute()
	}
	for window, times := range map[string]struct{ inside, outside []string }{
		"Mon-Fri 02:00-04:00 UTC":    {[]string{"02 02:00 +0000", "06 03:59 +0000", "02 04:00 +0200"}, []string{"02 01:59 +0000", "02 04:00 +0000", "07 03:00 +0000", "02 02:00 +0200"}},
		"02:00-04:00":                {[]string{"07 02:00 +0000"}, []string{"07 05:00 +0000"}},
		"Sat,Sun 00:00-24:00":        {[]string{"07 00:00 +0000", "08 23:59 +0000"}, []string{"06 23:59 +0000", "09 00:00 +0000"}},
		"Fri 22:00-04:00 UTC":        {[]string{"06 22:00 +0000", "07 03:59 +0000"}, []string{"06 03:00 +0000", "07 22:00 +0000", "07 04:00 +0000"}},
		"Sat-Mon 10:00-11:00 +01:00": {[]string{"09 09:00 +0000", "07 10:30 +0100"}, []string{"09 10:00 +0000", "10 09:00 +0000"}},
	} {
		w, err := api.ParseWindow(window)
		if err != nil {
			t.Errorf("%s: %v", window, err)
			continue
		}
		for _, text := range times.inside {
			if !w.Contains(at(text)) {
				t.Errorf("%s does not contain %s", window, text)
			}
		}
		for _, text := range times.outside {
			if w.Contains(at(text)) {
				t.Errorf("%s contains %s", window, text)
			}
		}
	}
	for _, window := range []string{
		"", "always", "Mon", "Monday 02:00-04:00", "mon 02:00-04:00", "Mon- 02:00-04:00", "Mon, 02:00-04:00", "02:00", "2:00-04:00",
		"02:00-25:00", "24:00-02:00", "02:00-02:00", "02:00 - 04:00", "Mon 02:00-04:00 Europe/Berlin", "Mon 02:00-04:00 UTC now", "Mon 02:00-04:00 01:00",
	} {
		if _, err := api.ParseWindow(window); err == nil {
			t.Errorf("%q is accepted", window)
		}
	}
}
