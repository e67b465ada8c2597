use parquet_analytics::base::keys::{Day, Prefix, Scope, Slug, day_of};

#[test]
fn a_day_is_exactly_ten_characters_and_exists() {
    assert_eq!("2026-07-01".parse::<Day>().unwrap().to_string(), "2026-07-01");
    for text in [
        "",
        "2026-7-1",
        "2026-02-30",
        "2026-07-01 ",
        "20260701",
        "yesterday",
        "0000-01-01",
        "２０２６-07-01",
        "+026-07-01",
    ] {
        assert!(text.parse::<Day>().is_err(), "{text:?} was accepted");
    }
}

#[test]
fn days_and_date32_values_are_each_others_inverse() {
    for text in ["0001-01-01", "1969-12-31", "1970-01-01", "2024-02-29", "9999-12-31"] {
        let day: Day = text.parse().unwrap();
        assert_eq!(Day::from_date32(day.to_date32()), Some(day));
    }
    assert_eq!(Day::from_date32(i32::MAX), None);
}

#[test]
fn a_slug_that_could_leave_its_folder_is_refused() {
    let long = "a".repeat(5000);
    for text in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        " a",
        "a ",
        long.as_str(),
    ] {
        assert!(text.parse::<Slug>().is_err(), "{text:?} was accepted");
    }
    for text in ["docs", "日本語", "a.b", "a_b-c", "a b", "é"] {
        assert!(text.parse::<Slug>().is_ok(), "{text:?} was refused");
    }
}

#[test]
fn a_key_says_which_day_its_file_is_of() {
    let day = "2026-07-01".parse().unwrap();
    for scope in [
        Scope::Day,
        Scope::Project("docs".parse().unwrap()),
        Scope::Organization("acme".parse().unwrap()),
    ] {
        for prefix in [Prefix::default(), "".parse().unwrap()] {
            assert_eq!(day_of(&prefix.key(&scope, day)), Some(day));
        }
    }
    for key in [
        "a/pageviews_2026-07.parquet",
        "a/pageviews_2026-13-01.parquet",
        "a/b",
        "k",
        "",
    ] {
        assert_eq!(day_of(key), None, "{key}");
    }
    assert_eq!(day_of(&Prefix::default().erased_key()), None);
}

#[test]
fn keys_are_the_documented_ones() {
    let day = "2026-07-01".parse().unwrap();
    let prefix = Prefix::default();
    assert_eq!(
        prefix.key(&Scope::Day, day),
        "analytics/pageviews/2026/07/01/pageviews_2026-07-01.parquet"
    );
    let project = Scope::Project("docs".parse().unwrap());
    assert_eq!(
        prefix.key(&project, day),
        "analytics/pageviews/project/docs/2026/07/01/pageviews_2026-07-01.parquet"
    );
    let organization = Scope::Organization("acme".parse().unwrap());
    assert_eq!(
        "".parse::<Prefix>().unwrap().key(&organization, day),
        "org/acme/2026/07/01/pageviews_2026-07-01.parquet"
    );
    for text in ["a//b", "../a", "a/./b", "a\nb"] {
        assert!(text.parse::<Prefix>().is_err(), "{text:?} was accepted");
    }
}
